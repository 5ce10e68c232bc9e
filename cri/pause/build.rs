//! Links pause without any library when it is built for size (the profile `small`); see `src/main.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(freestanding)");
    // Cargo tells build scripts the optimisation of the profile, but not what it does on panic.
    if std::env::var("OPT_LEVEL").as_deref() != Ok("s") {
        return;
    }
    println!("cargo:rustc-cfg=freestanding");
    // Code and constants share one page, which nobody can write to.
    let linker =
        "-Wl,-e,orlop_pause_start,--gc-sections,--build-id=none,--no-eh-frame-hdr,-z,norelro,-z,noseparate-code";
    for argument in ["-nostdlib", "-static", "-no-pie", linker] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    // The musl target brings its start file by itself; others must not.
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("musl") {
        println!("cargo:rustc-link-arg-bins=-nostartfiles");
    }
}
