//! The daemon's side of the admin socket.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::protocol::{Answer, Request, read_message, write_message};
use super::socket::ShortPath;
use crate::images::Images;

/// Most connections served at once.
const CONNECTIONS_MAX: usize = 32;
/// Longest time to send a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket can't be served.
#[derive(Debug, thiserror::Error)]
#[error("image socket {path}: {operation}: {source}", path = path.display())]
pub struct AdminServerError {
    /// The socket.
    pub path: PathBuf,
    /// What was done.
    pub operation: &'static str,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

/// Serves the admin socket until cancelled. A socket left by a dead process is replaced; the store's lock makes sure
/// that no living one is.
pub async fn serve(images: Arc<Images>, path: &Path, cancel: CancellationToken) -> Result<(), AdminServerError> {
    let listener = listen(path)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "image socket: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (images, cancel) = (Arc::clone(&images), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = talk(images, stream) => {}
            }
            drop(permit);
        });
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

fn listen(path: &Path) -> Result<UnixListener, AdminServerError> {
    let failed = |operation| {
        let path = path.to_path_buf();
        move |source| AdminServerError { path, operation, source }
    };
    let short = ShortPath::of(path).map_err(failed("open directory"))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(short.path()).map_err(failed("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed("set mode"))?;
    Ok(listener)
}

async fn talk(images: Arc<Images>, mut stream: UnixStream) {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred().map(|credentials| credentials.uid());
    if !matches!(peer, Ok(uid) if uid == 0 || uid == own) {
        tracing::warn!(?peer, "image socket: peer is not root and refused");
        return;
    }
    let request = match tokio::time::timeout(REQUEST_TIMEOUT, read_message::<Request>(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Err(error)) => {
            let _ = write_message(&mut stream, &Answer::Failed { message: format!("request: {error}") }).await;
            return;
        }
        _ => return,
    };
    let answer = answer(&images, request, &mut stream).await;
    if let Err(error) = write_message(&mut stream, &answer).await {
        tracing::debug!(%error, "image socket: client is gone");
    }
}

async fn answer(images: &Arc<Images>, request: Request, stream: &mut UnixStream) -> Answer {
    let failed = |message: String| Answer::Failed { message };
    match request {
        Request::Load { path, names } => match images.import(&path, names).await {
            Ok(ids) => Answer::Images { ids },
            Err(error) => failed(error.to_string()),
        },
        Request::Pull { reference, credentials } => pull(images, &reference, credentials, stream).await,
        Request::List => Answer::List { images: images.list().into_iter().map(Into::into).collect() },
        Request::Remove { name } => match images.remove(&name).await {
            Ok(found) => Answer::Removed { found },
            Err(error) => failed(error.to_string()),
        },
    }
}

async fn pull(
    images: &Arc<Images>,
    reference: &str,
    credentials: Option<crate::Credentials>,
    stream: &mut UnixStream,
) -> Answer {
    let pull = match images.start_pull(reference, credentials) {
        Ok(pull) => pull,
        Err(error) => return Answer::Failed { message: error.to_string() },
    };
    let mut progress = pull.progress();
    let mut finish = std::pin::pin!(pull.finish());
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outcome = &mut finish => {
                let last = progress.borrow().clone();
                let _ = write_message(stream, &Answer::Progress { progress: last }).await;
                return match outcome {
                    Ok(id) => Answer::Images { ids: vec![id] },
                    Err(error) => Answer::Failed { message: error.to_string() },
                };
            }
            _ = tick.tick() => {
                let changed = progress.has_changed().unwrap_or(false);
                let now = progress.borrow_and_update().clone();
                // A client that has gone away ends its share of the pull.
                if changed && write_message(stream, &Answer::Progress { progress: now }).await.is_err() {
                    return Answer::Failed { message: "the client is gone".into() };
                }
            }
        }
    }
}
