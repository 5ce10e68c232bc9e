//! Compiles the project's own `.proto` text; no `protoc` is needed.

use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new("proto");
    let files = ["cri.proto", "csi.proto", "pluginregistration.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files.map(|file| folder.join(file)), [folder])?;
    // The descriptors of CRI are kept for `json`, which writes messages as people read them.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let cri = descriptors.file.iter().filter(|file| file.package() == "runtime.v1").cloned().collect();
    std::fs::write(out.join("cri.bin"), prost_types::FileDescriptorSet { file: cri }.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
