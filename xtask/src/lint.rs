//! `cargo xtask lint`: formatting, clippy and the rules of the house.

use anyhow::Result;

use crate::workspace::{cargo, run as run_command, say};

/// Runs every check that needs no kernel and no root.
pub fn run() -> Result<()> {
    format()?;
    clippy()?;
    say("the rules of the house");
    // For the whole workspace, so that the libraries are built with the features that the other tests want too.
    run_command(cargo().args(["test", "--quiet", "--workspace", "--test", "tidy"]))
}

/// Checks the formatting.
pub fn format() -> Result<()> {
    say("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))
}

/// Takes no warning of clippy.
pub fn clippy() -> Result<()> {
    say("clippy");
    run_command(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}
