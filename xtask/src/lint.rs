//! `cargo xtask lint`: formatting, clippy and the rules of the house.

use anyhow::Result;

use crate::workspace::{cargo, run as run_command, say};

/// Runs every check that needs no kernel and no root.
pub fn run() -> Result<()> {
    say("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    say("clippy");
    run_command(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    say("the rules of the house");
    run_command(cargo().args(["test", "--quiet", "--package", "orlop-tests", "--test", "tidy"]))
}
