//! The CNI plugins as one multi-call program that dispatches on its name.

fn main() {}
