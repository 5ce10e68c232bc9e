//! `orlop api`: the embedded API server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_apiserver::{ApiServerConfig, serve};
use orlop_csi::DRIVER_NAME;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};

/// Flags of `orlop api`.
#[derive(clap::Args, Default)]
#[group(id = "api")]
pub struct Arguments {
    /// Name of this machine's node, for its certificate [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address that pods and nodes reach the API by, beside loopback [default: loopback only].
    #[arg(long, value_name = "IP")]
    pub advertise: Option<IpAddr>,
    /// Port [default: the instance's own, 6443 without --root].
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

/// An API server about to be served.
pub struct Prepared {
    /// What it is told.
    pub config: ApiServerConfig,
    /// Keys and certificates of the instance.
    pub pki: Pki,
    /// Name of the node.
    pub node_name: String,
}

/// Serves until cancelled.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    let mut prepared = prepare(layout, instance, &arguments)?;
    let ready = Arc::new(Notify::new());
    prepared.config.ready = Some(ready.clone());
    let kubeconfig = layout.kubeconfig();
    tokio::spawn(async move {
        ready.notified().await;
        println!("the API is ready: export KUBECONFIG={}", kubeconfig.display());
    });
    Ok(serve(prepared.config, cancel).await?)
}

/// Makes keys and kubeconfigs where they are missing.
pub fn prepare(layout: &Layout, instance: &Instance, arguments: &Arguments) -> Result<Prepared> {
    let node_name = match &arguments.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    let port = arguments.port.unwrap_or(instance.api_port);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let advertise = SocketAddr::new(arguments.advertise.unwrap_or(loopback.ip()), port);
    let address = advertise.ip().to_string();
    let options =
        PkiOptions { node_name: node_name.clone(), api_names: vec![address.clone()], kubelet_names: vec![address] };
    let pki = Pki::ensure(&layout.pki(), &options).context("make the keys and certificates")?;
    let server = format!("https://{loopback}");
    for (client, file) in [(Client::Admin, layout.kubeconfig()), (Client::Node, layout.node_kubeconfig())] {
        let kubeconfig = pki.kubeconfig(client, &server).context("make a kubeconfig")?;
        kubeconfig.write(&file).with_context(|| format!("write {}", file.display()))?;
    }
    let mut config = ApiServerConfig::new(layout.state.join("api"), &pki, advertise);
    config.listen = if advertise == loopback { vec![loopback] } else { vec![loopback, advertise] };
    config.csi_sockets.insert(DRIVER_NAME.into(), layout.csi_socket());
    config.first_objects = vec![
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": DRIVER_NAME},
            "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent"], "fsGroupPolicy": "File"},
        }),
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "local",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": DRIVER_NAME,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        }),
    ];
    Ok(Prepared { config, pki, node_name })
}
