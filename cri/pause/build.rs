//! Links pause without any library when it is built to abort on panic; see `src/main.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_PANIC").as_deref() == Ok("abort") {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro", "-Wl,-N"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
