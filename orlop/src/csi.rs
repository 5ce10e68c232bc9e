//! `orlop csi`: the CSI driver for node-local storage.

use anyhow::Result;
use orlop_csi::{CsiConfig, serve};
use tokio_util::sync::CancellationToken;

use crate::layout::Layout;

/// Flags of `orlop csi`.
#[derive(clap::Args, Default)]
#[group(id = "csi")]
pub struct Arguments {
    /// How the driver calls this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
}

/// Serves until cancelled; mounts stay.
pub async fn run(layout: &Layout, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    let node_id = match arguments.node_id {
        Some(name) => name,
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    Ok(serve(config(layout, &node_id), cancel).await?)
}

/// The driver's configuration.
pub fn config(layout: &Layout, node_id: &str) -> CsiConfig {
    CsiConfig::new(&layout.kubelet, layout.state.join("csi"), node_id)
}
