//! `cargo xtask`: the only task runner.

fn main() {}
