//! The command line of Orlop: subcommands and wiring, nothing else.

mod agent;
mod api;
mod client;
mod cri;
mod csi;
mod doctor;
mod down;
mod image;
mod layout;
mod log_file;
mod log_filter;
mod network;
mod node;
mod objects;
mod runtime;
mod up;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use layout::{Instance, Layout};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What `orlop --help` ends with.
const FIRST_STEPS: &str = "\
First steps on one machine, as root:
  orlop up --detach                               start everything; prints the kubeconfig
  orlop image load app.tar                        an image from docker save or of an OCI layout
  orlop apply -f pod.yaml && orlop wait my-pod    run a pod
  orlop get pods                                  look; kubectl works with the printed kubeconfig
  orlop down                                      remove everything again

A node of a cluster that is there already:
  orlop node --kubeconfig /etc/kubernetes/kubelet.conf

RUST_LOG sets what is logged to standard error: debug, or orlop_cri_server=debug,info for one part.";

/// A Kubernetes node in one program: node agent, container runtime, CNI plugins, CSI driver and, for a machine that
/// stands alone, the Kubernetes API.
///
/// Pods run on whatever happens to the daemon: stop, kill or upgrade it, and the next one takes them up.
#[derive(Parser)]
#[command(name = "orlop", version, max_term_width = 100, after_help = FIRST_STEPS)]
struct Cli {
    /// Keep all state below this folder, beside other instances [default: /var/lib/orlop and the kubelet's paths].
    ///
    /// An instance with a folder of its own chooses its own bridge, subnet, ports and cgroup, and writes them into
    /// state/instance.json there. Every command about it needs the same --root.
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: API server, container runtime, CSI driver, node agent.
    ///
    /// Needs root. Makes keys, kubeconfigs, the pods' bridge and a network where they are missing. SIGTERM or Ctrl-C end
    /// the daemon and leave the pods running; the next start takes them up, and `orlop down` removes them. SIGPWR ends the
    /// pods first, as shutdownGracePeriod of the kubelet's settings says.
    Up(up::Arguments),
    /// End what `up` started, with its pods, and remove all of its state.
    ///
    /// Stops the daemon, removes pods, network, mounts and cgroups, then the folders, volumes of `orlop csi` included.
    /// May be repeated when it fails half-way.
    Down,
    /// Check whether this machine can run pods, and say what to do where it can't.
    ///
    /// Makes namespaces, links, rules, a cgroup and an overlay for a moment and leaves nothing behind. Run it as root.
    Doctor,
    /// Run a node of a cluster: container runtime and node agent.
    ///
    /// The kubeconfig is the one a kubelet would use (user system:node:NAME). The cluster brings the network: the first
    /// CNI configuration list of /etc/cni/net.d is used, and the node is NotReady until there is one.
    ///
    /// SIGTERM and SIGINT end the daemon and no pod. When the machine goes down, pods are ended as shutdownGracePeriod or
    /// shutdownGracePeriodByPodPriority of the kubelet's settings say: by word of logind, or by SIGPWR, after which the daemon
    /// ends itself (exit code 0; 1 when pods have not ended in time). SIGUSR1 calls that off.
    Node(node::Arguments),
    /// Serve the embedded Kubernetes API of this machine; writes kubeconfigs for the administrator and the node.
    ///
    /// Objects are kept in one file below the state folder. Pods that name no node are bound to the one that registers.
    /// `orlop paths kubeconfig` prints where the administrator's kubeconfig is.
    Api(api::Arguments),
    /// Run the node agent (the kubelet's job) on a CRI runtime's socket.
    ///
    /// Any runtime will do: `orlop cri`, containerd (unix:///run/containerd/containerd.sock), CRI-O. Flags have the
    /// kubelet's names, signals are those of `orlop node`.
    Agent(agent::Arguments),
    /// Serve the container runtime (CRI) on its socket, for a kubelet, `crictl` or `orlop agent`.
    ///
    /// `crictl --runtime-endpoint unix://$(orlop paths cri-socket) info` shows its state. orlop-shim and orlop-pause are
    /// looked for beside this program.
    #[command(args_conflicts_with_subcommands = true)]
    Cri {
        #[command(flatten)]
        arguments: cri::Arguments,
        #[command(subcommand)]
        command: Option<cri::Command>,
    },
    /// Serve the CSI driver for node-local storage, for this or another kubelet.
    ///
    /// The driver is local.csi.orlop.dev. It registers in plugins_registry below the kubelet's root; volumes are folders
    /// in csi/ of the state folder. `orlop up` runs it already.
    Csi(csi::Arguments),
    /// Images: build, load, pull, list, remove.
    ///
    /// Goes through the running daemon, or works on the store itself when none runs.
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    /// Make single containers of bundles: the command line of runc (create, start, exec, kill, delete, run, ...).
    ///
    /// This is the program orlop-runtime, which is looked for beside this one. `orlop runtime --help` tells its commands;
    /// podman, containerd and handlers are better given orlop-runtime itself.
    #[command(disable_help_flag = true)]
    Runtime {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    #[command(flatten)]
    Objects(objects::Command),
    /// Print a path of this instance, for scripts: export KUBECONFIG=$(orlop paths kubeconfig).
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
    // Before anything else: it is a program of its own, and every call of it counts.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "runtime") {
        let error = runtime::become_it(words);
        eprintln!("orlop: {error:#}");
        return std::process::ExitCode::FAILURE;
    }
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
    let layout = Layout::new(cli.root.as_deref())?;
    let (writer, ansi) = match &cli.command {
        Command::Up(arguments) if arguments.background => {
            (BoxMakeWriter::new(log_file::LogFile::standard_error(&layout.log_file())?), false)
        }
        _ => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
    };
    let log = tracing_subscriber::fmt().with_env_filter(log_filter::first()).with_writer(writer).with_ansi(ansi);
    let log = log.with_filter_reloading();
    let handle = log.reload_handle();
    log_filter::keep(move |filter| handle.reload(filter));
    log.init();
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
            Command::Doctor => doctor::run(&layout),
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
            Command::Cri { command: Some(command), .. } => cri::configure(&layout, command),
            Command::Cri { arguments, command: None } => {
                cri::run(&layout, &Instance::load_or_choose(&layout)?, arguments, stop_by_signal()).await
            }
            Command::Csi(arguments) => csi::run(&layout, arguments, stop_by_signal()).await,
            // With a flag before it; without one it has been seen to already.
            Command::Runtime { arguments } => Err(runtime::become_it(arguments.into_iter())),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_told_apart() {
        super::Cli::command().debug_assert();
    }
}
