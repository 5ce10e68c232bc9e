//! Compiles the project's own `.proto` text; no `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new("proto");
    let files = ["cri.proto", "csi.proto", "pluginregistration.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files.map(|file| folder.join(file)), [folder])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
