//! `orlop up`: API server, CRI server, CSI driver and agent of this machine in one process.
//!
//! Order of the start: bridge (the API listens on it), keys, API, CRI and CSI, agent; the node is ready when it says so itself.
//! Stopping leaves the pods running; the next start takes them up, and `orlop down` ends them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::ApiClient;
use crate::layout::{Instance, Layout};
use crate::{agent, api, cri, csi, network};

/// What a daemon in the background says when the node is ready: its last word on standard output.
const READY: &str = "the node is ready";
/// How long the node may take to be ready.
const READY_TIME: Duration = Duration::from_secs(60);

/// Flags of `orlop up`.
#[derive(clap::Args)]
#[group(id = "up")]
pub struct Arguments {
    /// Go on in the background once the node is ready; the log is orlop.log in the state folder.
    #[arg(long)]
    pub detach: bool,
    /// This is the process in the background.
    #[arg(long, hide = true)]
    pub background: bool,
    /// The kubelet's settings of this node (`KubeletConfiguration`).
    #[arg(long, value_name = "FILE")]
    kubelet_config: Option<PathBuf>,
    /// Which programs give credentials for registries (`CredentialProviderConfig`): a file, or a folder of them.
    #[arg(long, value_name = "PATH", requires = "image_credential_provider_bin_dir")]
    image_credential_provider_config: Option<PathBuf>,
    /// The folder with these programs.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Name of the node [default: the host name].
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Address that pods and other machines reach the API by, beside loopback [default: the pod bridge's].
    #[arg(long, value_name = "IP")]
    advertise: Option<IpAddr>,
    /// Port of the API [default: the instance's own, 6443 without --root].
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Runs everything until cancelled.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a node makes namespaces, mounts and cgroups: run orlop up as root");
    }
    let _pid = PidFile::take(layout)?;
    let (own, prepared_instance) = (layout.clone(), instance.clone());
    tokio::task::spawn_blocking(move || {
        network::prepare(&own, &prepared_instance)?;
        network::make_bridge(&prepared_instance)
    })
    .await?
    .context("prepare the pods' network")?;
    let address = arguments.advertise.unwrap_or(instance.gateway().into());
    let api = api::Arguments { node_name: arguments.node_name, advertise: Some(address), port: arguments.port };
    let mut prepared = api::prepare(layout, instance, &api)?;
    let ready = Arc::new(Notify::new());
    prepared.config.ready = Some(ready.clone());
    let node = agent::own_node(layout, &prepared.pki, &prepared.node_name, address);
    let (cri, reloads) = cri::configuration(layout, cri::Arguments::default())?;
    cri::refuse_systemd(&cri)?;
    let node = agent::Arguments {
        kubelet_config: arguments.kubelet_config,
        image_credential_provider_config: arguments.image_credential_provider_config,
        image_credential_provider_bin_dir: arguments.image_credential_provider_bin_dir,
        ..node
    };
    let agent = agent::config(layout, instance, node)?;

    let mut parts = JoinSet::new();
    let end = cancel.clone();
    let api_config = prepared.config;
    parts.spawn(async move { orlop_apiserver::serve(api_config, end).await.context("the API server") });
    let end = cancel.clone();
    parts.spawn(async move { orlop_cri_server::serve(cri, reloads, end).await.context("the CRI server") });
    let (end, csi) = (cancel.clone(), csi::config(layout, &prepared.node_name));
    parts.spawn(async move { orlop_csi::serve(csi, end).await.context("the CSI driver") });
    let (end, started) = (cancel.clone(), CancellationToken::new());
    let (api_started, orders) = (started.clone(), agent::shutdown_orders()?);
    parts.spawn(async move {
        tokio::select! {
            () = ready.notified() => println!("the API is ready"),
            () = end.cancelled() => return Ok(()),
        }
        api_started.cancel();
        let ended = orlop_agent_daemon::serve(agent, orders, end.clone()).await.context("the agent");
        // It has ended all pods because the machine goes down: there is nothing left to do for anybody.
        end.cancel();
        ended
    });
    let (end, kubeconfig, node_name) = (cancel.clone(), layout.kubeconfig(), prepared.node_name.clone());
    parts.spawn(async move {
        tokio::select! {
            said = async { started.cancelled().await; say_ready(&kubeconfig, &node_name).await } => said?,
            () = end.cancelled() => {}
        }
        end.cancelled().await;
        Ok(())
    });
    // The first part that fails ends all: a node that works by half is worse than one that says why it doesn't.
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let ended = ended.context("a part of the node panicked").and_then(|ended| ended);
        if !cancel.is_cancelled() && ended.is_ok() {
            continue;
        }
        if result.is_ok() {
            result = ended;
        }
        cancel.cancel();
    }
    result
}

/// Waits until the API shows the node as ready, and says so.
async fn say_ready(kubeconfig: &std::path::Path, node_name: &str) -> Result<()> {
    let waiting = async {
        let client = ApiClient::open(kubeconfig).await?;
        client.wait_condition("nodes", "", node_name, "Ready").await
    };
    match tokio::time::timeout(READY_TIME, waiting).await {
        Ok(ready) => ready?,
        Err(_) => bail!("the node {node_name} was not ready within {} s; the log tells why", READY_TIME.as_secs()),
    }
    println!("{READY}: export KUBECONFIG={}", kubeconfig.display());
    Ok(())
}

/// Starts the daemon in the background and returns when it is ready. Its log goes to a file.
pub fn detach(layout: &Layout, arguments: &Arguments) -> Result<()> {
    let log_file = layout.log_file();
    std::fs::create_dir_all(&layout.state).with_context(|| format!("make {}", layout.state.display()))?;
    let log = File::options().create(true).append(true).open(&log_file);
    let log = log.with_context(|| format!("open {}", log_file.display()))?;
    let began = log.metadata()?.len();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("up").arg("--background");
    if let Some(root) = &layout.root {
        command.arg("--root").arg(root);
    }
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    for (flag, value) in [
        ("--kubelet-config", path(&arguments.kubelet_config)),
        ("--image-credential-provider-config", path(&arguments.image_credential_provider_config)),
        ("--image-credential-provider-bin-dir", path(&arguments.image_credential_provider_bin_dir)),
        ("--node-name", arguments.node_name.clone()),
        ("--advertise", arguments.advertise.map(|ip| ip.to_string())),
        ("--port", arguments.port.map(|port| port.to_string())),
    ] {
        command.args(value.into_iter().flat_map(|value| [flag.to_string(), value]));
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().context("start orlop up")?;
    let output = child.stdout.take().context("the daemon's output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if line.starts_with(READY) {
            return Ok(());
        }
    }
    let status = child.wait()?;
    let text = std::fs::read(&log_file).unwrap_or_default();
    let words = String::from_utf8_lossy(&text[(began as usize).min(text.len())..]).into_owned();
    let last: Vec<&str> = words.lines().rev().take(20).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    bail!("orlop up ended with {status}; the last lines of {}:\n{}", log_file.display(), last.join("\n"))
}

/// The file that names the running daemon; locked while it runs.
struct PidFile(#[expect(dead_code, reason = "holds the lock")] File);

impl PidFile {
    fn take(layout: &Layout) -> Result<PidFile> {
        let path = layout.pid_file();
        std::fs::create_dir_all(&layout.run).with_context(|| format!("make {}", layout.run.display()))?;
        let mut file = File::options().create(true).append(true).open(&path)?;
        if !orlop_kernel::lock::lock_file(&file)? {
            let other = std::fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "orlop up runs already for this state (process {}); stop it by orlop down, or use another --root",
                other.trim()
            );
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(PidFile(file))
    }
}
