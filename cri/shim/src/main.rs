//! `orlop-shim`: one per pod, single thread, owns the pod's processes and their logs.

fn main() {}
