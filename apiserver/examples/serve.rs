//! The API server alone, for development: `serve DIR PORT`; the kubeconfig is `DIR/admin.kubeconfig`.

use std::path::PathBuf;

use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_apiserver::{ApiServerConfig, serve};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("give a folder")?);
    let port: u16 = arguments.next().ok_or("give a port")?.parse()?;
    let pki = Pki::ensure(&dir.join("pki"), &PkiOptions { node_name: "node-1".into(), ..PkiOptions::default() })?;
    let server = format!("https://127.0.0.1:{port}");
    pki.kubeconfig(Client::Admin, &server)?.write(&dir.join("admin.kubeconfig"))?;
    pki.kubeconfig(Client::Node, &server)?.write(&dir.join("node.kubeconfig"))?;
    let config = ApiServerConfig::new(dir.join("api"), &pki, ([127, 0, 0, 1], port).into());
    let cancel = CancellationToken::new();
    let ending = cancel.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        ending.cancel();
    });
    serve(config, cancel).await?;
    Ok(())
}
