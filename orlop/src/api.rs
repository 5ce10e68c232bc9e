//! `orlop api`: the embedded API server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_apiserver::{ApiServerConfig, serve};
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};

/// Flags of `orlop api`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Name of this machine's node, for its certificate.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Address that pods and nodes reach the API by, beside loopback.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    advertise: IpAddr,
    /// Port; the instance's own when absent.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Makes keys and kubeconfigs where they are missing and serves until cancelled.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    let node_name = match arguments.node_name {
        Some(name) => name,
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    let port = arguments.port.unwrap_or(instance.api_port);
    let advertise = SocketAddr::new(arguments.advertise, port);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let address = arguments.advertise.to_string();
    let options = PkiOptions { node_name, api_names: vec![address.clone()], kubelet_names: vec![address] };
    let pki = Pki::ensure(&layout.state.join("pki"), &options).context("make the keys and certificates")?;
    let server = format!("https://{loopback}");
    for (client, file) in [(Client::Admin, layout.kubeconfig()), (Client::Node, layout.node_kubeconfig())] {
        let kubeconfig = pki.kubeconfig(client, &server).context("make a kubeconfig")?;
        kubeconfig.write(&file).with_context(|| format!("write {}", file.display()))?;
    }
    let ready = Arc::new(tokio::sync::Notify::new());
    let mut config = ApiServerConfig::new(layout.state.join("api"), &pki, advertise);
    config.listen = if advertise == loopback { vec![loopback] } else { vec![loopback, advertise] };
    config.ready = Some(ready.clone());
    let kubeconfig = layout.kubeconfig();
    tokio::spawn(async move {
        ready.notified().await;
        println!("the API is ready: export KUBECONFIG={}", kubeconfig.display());
    });
    Ok(serve(config, cancel).await?)
}
