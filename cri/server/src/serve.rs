//! Starting the server: lock, folders, recovery, sockets.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use orlop_image::{ImageError, Images, admin};
use orlop_kernel::cgroup::unit::Driver;
use orlop_kernel::cgroup::{CgroupError, Cgroups};
use orlop_network::Network;
use orlop_proto::cri::RemovePodSandboxRequest;
use orlop_proto::cri::image_service_server::ImageServiceServer;
use orlop_proto::cri::runtime_service_server::RuntimeServiceServer;
use orlop_streaming::{ServerError, StreamingConfig};
use orlop_systemd::{Manager, SystemdError};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::apparmor::AppArmor;
use crate::config::CriConfig;
use crate::deadline::Deadlines;
use crate::error::RpcError;
use crate::events::Events;
use crate::image_service::ImageRpc;
use crate::metrics::{CountRpcs, Metrics};
use crate::metrics_server;
use crate::network_status::NetworkStatus;
use crate::record::Records;
use crate::recovery;
use crate::reload::{self, Live, Reload};
use crate::runtime_service::RuntimeRpc;
use crate::sandbox_remove;
use crate::server::Server;
use crate::shim;
use crate::store::Store;
use crate::streams::Streams;
use crate::traces::Traces;

/// Bytes of a message, as clients of the CRI have it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why the server can't run.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Another one has the state.
    #[error("another CRI server uses {path:?}; stop it, or give this one its own folder by --root")]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
    /// A folder or socket can't be had.
    #[error("{step} {path:?}")]
    File {
        /// What was done.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program is missing.
    #[error("the program {path:?} is missing; install it beside orlop, or name it by {flag}")]
    Program {
        /// The program.
        path: PathBuf,
        /// The flag.
        flag: &'static str,
    },
    /// The machine has no cgroups.
    #[error("find the cgroups of the machine")]
    Cgroups(#[source] CgroupError),
    /// The cgroups are not those that systemd makes.
    #[error(
        "the cgroup driver systemd needs cgroup v2, and this machine has hierarchies of v1; boot it with \
         systemd.unified_cgroup_hierarchy=1, or set cgroup_driver = \"cgroupfs\" (and cgroupDriver of the kubelet)"
    )]
    CgroupVersion,
    /// systemd can't be asked for cgroups.
    #[error("use the cgroup driver systemd")]
    Systemd(#[source] SystemdError),
    /// The image store can't be opened.
    #[error("open the image store")]
    Images(#[source] ImageError),
    /// The streaming server can't listen.
    #[error("start the streaming server")]
    Streaming(#[source] ServerError),
    /// The metrics can't be served.
    #[error("serve the metrics on {address}; choose another address for them")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Traces can't be sent.
    #[error("send traces to {endpoint:?}; it must be a collector of OTLP by gRPC, as http://HOST:PORT")]
    Traces {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// What was there before can't be taken up.
    #[error("take up what was there before")]
    Recovery(#[source] RpcError),
    /// The gRPC server ended.
    #[error("serve gRPC")]
    Serve(#[source] tonic::transport::Error),
}

/// Serves until cancelled, and takes over the configurations that come meanwhile. Containers run on after that.
///
/// # Errors
/// When it can't start; the message says what to do.
pub async fn serve(
    config: CriConfig,
    reloads: mpsc::Receiver<Reload>,
    cancel: CancellationToken,
) -> Result<(), CriError> {
    for (path, flag) in [(&config.shim_program, "--shim"), (&config.pause_program, "--pause")] {
        if !path.is_file() {
            return Err(CriError::Program { path: path.clone(), flag });
        }
    }
    let _lock = prepare(&config)?;
    let traces = Traces::start(config.tracing.as_ref()).map_err(|source| {
        let endpoint = config.tracing.as_ref().map(|tracing| tracing.endpoint.clone()).unwrap_or_default();
        CriError::Traces { endpoint, source }
    })?;
    let server = open(config).await?;
    let listener = listen(&server, &cancel).await?;
    tokio::spawn(reload::follow(server.clone(), reloads));
    let images = ImageServiceServer::new(ImageRpc::of(server.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let runtime = RuntimeServiceServer::new(RuntimeRpc { server: server.clone(), cancel: cancel.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tracing::info!(socket = ?server.config.socket, "the CRI server is ready");
    let served = tonic::transport::Server::builder()
        .layer(traces.layer())
        .layer(CountRpcs(server.metrics.clone()))
        .layer(Deadlines)
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.cancelled_owned())
        .await;
    traces.end().await;
    served.map_err(CriError::Serve)
}

/// Stops and removes every sandbox, without serving anybody. Returns how many there were.
///
/// # Errors
/// When another server runs, or a sandbox can't be removed; to be tried again.
pub async fn remove_all(config: CriConfig) -> Result<usize, CriError> {
    let _lock = prepare(&config)?;
    let server = open(config).await?;
    let sandboxes = server.store.sandboxes();
    for sandbox in &sandboxes {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        sandbox_remove::remove(server.clone(), request).await.map_err(CriError::Recovery)?;
    }
    Ok(sandboxes.len())
}

/// Everything up to the sockets.
async fn open(config: CriConfig) -> Result<Arc<Server>, CriError> {
    let opening = config.images.clone();
    let images = tokio::task::spawn_blocking(move || Images::open(opening)).await;
    let images = images.map_err(|error| CriError::Recovery(error.into()))?.map_err(CriError::Images)?;
    let streaming = StreamingConfig { listen: config.streaming, ..StreamingConfig::default() };
    let streaming = orlop_streaming::Server::bind(streaming).await.map_err(CriError::Streaming)?;
    let records =
        Records::open(&config.state_dir).map_err(broken("make the folders of records below", &config.state_dir))?;
    let checked = shim::check_user_namespaces(&config.shim_program, images.root()).await;
    if let Err(reason) = &checked {
        tracing::info!(reason, "pods can't have user namespaces here");
    }
    let user_namespaces = checked.is_ok();
    let cgroups = Cgroups::detect().map_err(CriError::Cgroups)?;
    check_driver(&config, &cgroups).await?;
    let server = Arc::new(Server {
        network: Network::new(config.network.clone()),
        network_status: NetworkStatus::default(),
        images: Arc::new(images),
        streaming,
        records,
        store: Store::default(),
        events: Events::default(),
        metrics: Metrics::default(),
        user_namespaces,
        live: RwLock::new(Arc::new(Live::new(&config))),
        apparmor: AppArmor::default(),
        cgroups,
        config,
    });
    recovery::recover(&server).await.map_err(CriError::Recovery)?;
    Ok(server)
}

/// Looks for systemd where it is to make the cgroups.
async fn check_driver(config: &CriConfig, cgroups: &Cgroups) -> Result<(), CriError> {
    match (config.cgroup_driver, cgroups) {
        (Driver::Cgroupfs, _) => Ok(()),
        (Driver::Systemd, Cgroups::V1(_)) => Err(CriError::CgroupVersion),
        (Driver::Systemd, Cgroups::V2(_)) => {
            let version = Manager.version().await.map_err(CriError::Systemd)?;
            tracing::info!(version, "systemd makes the cgroups");
            Ok(())
        }
    }
}

/// Opens the sockets.
async fn listen(server: &Arc<Server>, cancel: &CancellationToken) -> Result<UnixListener, CriError> {
    let socket = server.config.socket.clone();
    let listener = orlop_kernel::socket::listen(&socket).map_err(broken("listen on", &socket))?;
    let listener = std::os::unix::net::UnixListener::from(listener);
    let listener = UnixListener::from_std(listener).map_err(broken("listen on", &socket))?;
    let (images, admin_socket, end) = (server.images.clone(), server.config.run_dir.join("image.sock"), cancel.clone());
    tokio::spawn(async move {
        if let Err(error) = admin::serve(images, &admin_socket, end).await {
            tracing::warn!(error = crate::error::chain(&error), "orlop image can't be served");
        }
    });
    if let Some(address) = server.config.metrics {
        let bound = tokio::net::TcpListener::bind(address).await;
        let bound = bound.map_err(|source| CriError::Metrics { address, source })?;
        tokio::spawn(metrics_server::serve(bound, server.metrics.clone(), cancel.clone()));
    }
    tokio::spawn(server.streaming.clone().serve(Arc::new(Streams(server.clone())), cancel.clone()));
    Ok(listener)
}

/// Makes the folders and takes the lock, which lives as long as the file.
fn prepare(config: &CriConfig) -> Result<std::fs::File, CriError> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o711);
    let run = &config.run_dir;
    let folders = [config.state_dir.clone(), run.clone(), run.join("sandboxes"), run.join("netns")];
    for folder in folders.iter().map(PathBuf::as_path).chain(config.socket.parent()) {
        private.create(folder).map_err(broken("make the folder", folder))?;
    }
    let path = config.state_dir.join("lock");
    let lock = std::fs::File::create(&path).map_err(broken("open", &path))?;
    if !orlop_kernel::lock::lock_file(&lock).map_err(broken("lock", &path))? {
        return Err(CriError::Locked { path: config.state_dir.clone() });
    }
    Ok(lock)
}

fn broken(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CriError {
    let path = path.to_path_buf();
    move |source| CriError::File { step, path, source }
}
