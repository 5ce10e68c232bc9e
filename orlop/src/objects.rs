//! `orlop apply`, `orlop wait` and `orlop get`: a first look at the API without kubectl.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::ApiClient;
use crate::layout::Layout;

/// What to do with objects.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the objects of a manifest, or change those that are there.
    ///
    /// A first step where there is no kubectl, which can do more with the same kubeconfig.
    Apply {
        /// The manifest, in YAML with one or more documents, or in JSON.
        #[arg(short, long, value_name = "FILE")]
        filename: PathBuf,
        /// Namespace of objects that name none.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Wait until a pod is ready; prints its events when it isn't in time.
    Wait {
        /// The pod.
        name: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// How long to wait, in seconds.
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
    /// Print objects as a table.
    Get {
        /// The kind: pods, nodes, events, persistentvolumeclaims, …
        kind: String,
        /// One object of it.
        name: Option<String>,
        /// Their namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Only the IP of a pod.
        #[arg(long, requires = "name")]
        pod_ip: bool,
    },
}

/// Does one of them.
pub async fn run(layout: &Layout, command: Command) -> Result<()> {
    let client = ApiClient::open(&layout.kubeconfig()).await?;
    match command {
        Command::Apply { filename, namespace } => {
            let manifest =
                std::fs::read_to_string(&filename).with_context(|| format!("read {}", filename.display()))?;
            client.apply(&manifest, &namespace).await.with_context(|| format!("apply {}", filename.display()))
        }
        Command::Wait { name, namespace, timeout_seconds } => {
            let limit = Duration::from_secs(timeout_seconds);
            let waiting = client.wait_condition("pods", &namespace, &name, "Ready");
            if let Ok(done) = tokio::time::timeout(limit, waiting).await {
                println!("pod/{name} is ready");
                return done;
            }
            let events = client.table("events", &namespace, None).await.unwrap_or_default();
            bail!("pod {namespace}/{name} was not ready within {timeout_seconds} s; what happened:\n{events}")
        }
        Command::Get { kind, name, namespace, pod_ip } => {
            if let (true, Some(name)) = (pod_ip, &name) {
                println!("{}", client.field(&kind, &namespace, name, "/status/podIP").await?);
                return Ok(());
            }
            print!("{}", client.table(&kind, &namespace, name.as_deref()).await?);
            Ok(())
        }
    }
}
