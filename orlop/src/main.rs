//! The command line of Orlop: subcommands and wiring, nothing else.

mod agent;
mod api;
mod client;
mod cri;
mod csi;
mod down;
mod image;
mod layout;
mod network;
mod node;
mod objects;
mod up;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use layout::{Instance, Layout};
use tokio_util::sync::CancellationToken;

/// A Kubernetes node in one program.
#[derive(Parser)]
#[command(name = "orlop", version, about, max_term_width = 100)]
struct Cli {
    /// Keep all state below this folder, beside other instances (default: /var/lib/orlop and the kubelet's paths).
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: API server, container runtime, node agent.
    Up(up::Arguments),
    /// End what `up` started, with its pods, and remove all of its state.
    Down,
    /// Run a node of a cluster: container runtime and node agent.
    Node(node::Arguments),
    /// Serve the embedded Kubernetes API of this machine; writes kubeconfigs for the administrator and the node.
    Api(api::Arguments),
    /// Run the node agent (the kubelet's job) on a CRI runtime's socket.
    Agent(agent::Arguments),
    /// Serve the container runtime (CRI) on its socket, for a kubelet, `crictl` or `orlop agent`.
    Cri(cri::Arguments),
    /// Serve the CSI driver for node-local storage, for this or another kubelet.
    Csi(csi::Arguments),
    /// Images: build, load, pull, list, remove.
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    #[command(flatten)]
    Objects(objects::Command),
    /// Print a path of this instance, for scripts.
    Paths {
        /// Which one.
        #[arg(value_enum)]
        path: PathName,
    },
}

/// Paths that scripts ask for.
#[derive(Clone, Copy, clap::ValueEnum)]
enum PathName {
    /// The administrator's kubeconfig.
    Kubeconfig,
    /// The socket of the CRI server.
    CriSocket,
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // One line with every cause: what a person or a log reads.
            eprintln!("orlop: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // One TLS provider for everything; whoever was first is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let layout = Layout::new(cli.root.as_deref())?;
    if let Command::Up(arguments) = &cli.command {
        if arguments.detach {
            return up::detach(&layout, arguments);
        }
        if arguments.background {
            // Before any thread: the session is the process's.
            rustix::process::setsid()?;
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(arguments) => {
                up::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Down => down::run(&layout).await,
            Command::Node(arguments) => {
                node::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Objects(command) => objects::run(&layout, command).await,
            Command::Api(arguments) => {
                api::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Agent(arguments) => {
                agent::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Cri(arguments) => {
                cri::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Csi(arguments) => csi::run(&layout, arguments, stop_by_signal()).await,
            Command::Image { command } => image::run(&layout, command).await,
            Command::Paths { path } => {
                let path = match path {
                    PathName::Kubeconfig => layout.kubeconfig(),
                    PathName::CriSocket => layout.cri_socket(),
                };
                println!("{}", path.display());
                Ok(())
            }
        }
    })
}

/// A token that is cancelled by SIGTERM or SIGINT.
fn stop_by_signal() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            return;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        token.cancel();
    });
    cancel
}
