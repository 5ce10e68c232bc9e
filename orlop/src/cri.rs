//! `orlop cri`: the container runtime alone, for a kubelet, `crictl` or `orlop agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use orlop_cri_server::{CriConfig, serve};
use orlop_image::ImageConfig;
use orlop_network::NetworkConfig;
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};
use crate::network;

/// How long one CNI plugin may take.
const CNI_TIMEOUT: Duration = Duration::from_secs(60);

/// Flags of `orlop cri`.
#[derive(clap::Args, Default)]
#[group(id = "cri")]
pub struct Arguments {
    /// The socket of the CRI services [default: cri/cri.sock below the run folder].
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Folder of the CNI configuration lists; the first by name is used.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of the CNI plugins; may be repeated.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Vec<PathBuf>,
    /// Address of the streaming server of exec, attach and port-forward. The URL is the only secret: keep it on loopback.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    streaming_address: Option<SocketAddr>,
    /// The shim program [default: orlop-shim beside this program].
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// The pause program [default: orlop-pause beside this program].
    #[arg(long, value_name = "FILE")]
    pause: Option<PathBuf>,
}

impl Arguments {
    /// The network's configuration is somebody else's.
    pub fn has_own_network(&self) -> bool {
        self.cni_conf_dir.is_some()
    }
}

/// Serves until cancelled; containers run on after it.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    if layout.root.is_some() && !arguments.has_own_network() {
        network::prepare(layout, instance)?;
    }
    Ok(serve(config(layout, &arguments)?, cancel).await?)
}

/// The server's configuration.
pub fn config(layout: &Layout, arguments: &Arguments) -> Result<CriConfig> {
    let state_dir = layout.state.join("cri");
    let bin_dirs = match arguments.cni_bin_dir.as_slice() {
        [] => vec![layout.cni_bin.clone()],
        given => given.to_vec(),
    };
    let program = |given: &Option<PathBuf>, name| given.clone().map_or_else(|| beside(name), Ok);
    Ok(CriConfig {
        images: ImageConfig::new(&state_dir),
        run_dir: layout.run.join("cri"),
        socket: arguments.socket.clone().unwrap_or_else(|| layout.cri_socket()),
        shim_program: program(&arguments.shim, "orlop-shim")?,
        pause_program: program(&arguments.pause, "orlop-pause")?,
        network: NetworkConfig {
            conf_dir: arguments.cni_conf_dir.clone().unwrap_or_else(|| layout.cni_conf.clone()),
            bin_dirs,
            cache_dir: layout.cni_cache.clone(),
            exec_timeout: CNI_TIMEOUT,
        },
        streaming: arguments.streaming_address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
        state_dir,
    })
}

/// A program of ours that lies beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the path of this program")?;
    Ok(own.with_file_name(name))
}
