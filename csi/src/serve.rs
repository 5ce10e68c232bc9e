//! Starting and stopping the driver.
//!
//! Order of the start: the data folder, the driver's socket, the registration socket. Whoever sees the last can use
//! the first two.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::csi::controller_server::ControllerServer;
use orlop_proto::csi::identity_server::IdentityServer;
use orlop_proto::csi::node_server::NodeServer;
use orlop_proto::registration::registration_server::RegistrationServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::busy::Busy;
use crate::config::CsiConfig;
use crate::controller::ControllerService;
use crate::identity::IdentityService;
use crate::node::NodeService;
use crate::place::Places;
use crate::registration::RegistrationService;
use crate::store::{Store, StoreError};

/// Requests of one connection at a time.
const REQUESTS_MAX: usize = 64;
/// How long one request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);
/// How long requests may go on when the driver ends.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a driver can't serve.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// Its settings.
    #[error("the driver's {field} {value:?} {why}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Its volumes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder or socket.
    #[error("{step} {path}: {source}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Serving.
    #[error("serving {path}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why it ended.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Runs a driver until cancelled. Volumes stay mounted after it.
///
/// # Errors
/// [`CsiError`] when it can't start, or a socket can't be served any more.
pub async fn serve(config: CsiConfig, cancel: CancellationToken) -> Result<(), CsiError> {
    check(&config)?;
    let config = Arc::new(config);
    let (opened, root) = (config.clone(), config.kubelet_root.clone());
    let (store, places) = tokio::task::spawn_blocking(move || -> Result<_, CsiError> {
        make_folder(&opened.kubelet_root)?;
        let places = Places::new(&root).map_err(|source| CsiError::Socket { step: "open", path: root, source })?;
        Ok((Arc::new(Store::open(&opened.data_dir)?), Arc::new(places)))
    })
    .await
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let busy = Busy::default();
    let listener = listen(&config.socket)?;
    let registration_socket = config.registration_socket();
    let registrar = listen(&registration_socket)?;
    tracing::info!(driver = config.driver_name, socket = %config.socket.display(), "the CSI driver is ready");

    let driver = Server::builder()
        .timeout(REQUEST_DEADLINE)
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .add_service(IdentityServer::new(IdentityService { driver_name: config.driver_name.clone() }))
        .add_service(ControllerServer::new(ControllerService {
            config: config.clone(),
            store: store.clone(),
            busy: busy.clone(),
        }))
        .add_service(NodeServer::new(NodeService { config: config.clone(), store, places, busy }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.clone().cancelled_owned());
    let registration = RegistrationService {
        driver_name: config.driver_name.clone(),
        endpoint: config.socket.to_string_lossy().into_owned(),
    };
    let registration = Server::builder()
        .timeout(REQUEST_DEADLINE)
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .add_service(RegistrationServer::new(registration))
        .serve_with_incoming_shutdown(UnixListenerStream::new(registrar), cancel.clone().cancelled_owned());
    let both = async {
        let driver = async { driver.await.map_err(|source| failed_serving(&config.socket, source)) };
        let registration = async { registration.await.map_err(|source| failed_serving(&registration_socket, source)) };
        tokio::try_join!(driver, registration).map(drop)
    };
    let stopped = async {
        cancel.cancelled().await;
        // Nobody is to find a driver that is ending.
        let _ = std::fs::remove_file(&registration_socket);
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    let result = tokio::select! {
        result = both => result,
        () = stopped => Ok(()),
    };
    for socket in [&registration_socket, &config.socket] {
        let _ = std::fs::remove_file(socket);
    }
    result
}

fn failed_serving(path: &Path, source: tonic::transport::Error) -> CsiError {
    CsiError::Serve { path: path.to_path_buf(), source }
}

/// Names are used in paths and in labels.
fn check(config: &CsiConfig) -> Result<(), CsiError> {
    let wrong = |field, value: &str, why| CsiError::Config { field, value: value.to_owned(), why };
    let name = &config.driver_name;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.');
    let edge = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    if name.len() > 63 || !name.chars().all(plain) || !edge(name.chars().next()) || !edge(name.chars().last()) {
        return Err(wrong("name", name, "must be like a domain name, of 63 letters at most"));
    }
    if config.node_id.is_empty() || config.node_id.len() > 192 {
        return Err(wrong("node id", &config.node_id, "must have 1 to 192 letters"));
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), CsiError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|source| CsiError::Socket {
        step: "make",
        path: path.to_path_buf(),
        source,
    })
}

fn listen(path: &Path) -> Result<UnixListener, CsiError> {
    let failed = |source| CsiError::Socket { step: "listen on", path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let socket = orlop_kernel::socket::listen(path).map_err(failed)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).map_err(failed)
}
