//! Single containers by `orlop-runtime`: the cases of the runtime specification's own validation suite, each by its name
//! there (`docs/runtime.md` lists them), and what callers of the OCI's runtimes rely on beside.

mod bench;
mod commands;
mod hooks;
mod life;
mod linux;
mod process;
