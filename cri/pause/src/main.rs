//! `orlop-pause`: holds the pod's namespaces and reaps orphans.

fn main() {}
