//! `orlop node`: CRI server and agent as a node of a cluster.

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};
use crate::{agent, cri, network};

/// Flags of `orlop node`.
#[derive(clap::Args)]
#[group(id = "node")]
pub struct Arguments {
    #[command(flatten)]
    cri: cri::Arguments,
    #[command(flatten)]
    agent: agent::Arguments,
}

/// Runs both until cancelled; containers run on after that.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a node makes namespaces, mounts and cgroups: run orlop node as root");
    }
    if layout.root.is_some() && !arguments.cri.has_own_network() {
        network::prepare(layout, instance)?;
    }
    let (cri, reloads) = cri::configuration(layout, arguments.cri)?;
    cri::refuse_systemd(&cri)?;
    let agent = agent::config(layout, instance, arguments.agent)?;
    let mut parts = JoinSet::new();
    let end = cancel.clone();
    parts.spawn(async move { orlop_cri_server::serve(cri, reloads, end).await.context("the CRI server") });
    let (end, orders) = (cancel.clone(), agent::shutdown_orders()?);
    parts.spawn(async move { orlop_agent_daemon::serve(agent, orders, end).await.context("the agent") });
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let ended = ended.context("a part of the node panicked").and_then(|ended| ended);
        if result.is_ok() {
            result = ended;
        }
        cancel.cancel();
    }
    result
}
