//! The command line of Orlop: subcommands and wiring, nothing else.

fn main() {}
