//! `cargo xtask down`: stops what `up` started; nothing is left behind.

use std::path::Path;

use anyhow::{Result, bail};

use crate::packages::as_root;
use crate::workspace::{run as run_command, target};

/// Stops the instance and removes its pods, network, state and folders.
pub fn run(root: Option<&Path>) -> Result<()> {
    let orlop = target().join("programs/dev/orlop");
    if !orlop.is_file() {
        bail!("{} is missing: nothing was started from this checkout (`cargo xtask build` makes it)", orlop.display());
    }
    let mut command = as_root(&orlop.to_string_lossy());
    command.arg("down");
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    run_command(&mut command)
}
