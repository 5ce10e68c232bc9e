//! The command line's side of the admin socket.

use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::protocol::{Answer, Request, read_message, write_message};
use super::socket::ShortPath;

/// A request could not be made, or failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket can't be used.
    #[error("image socket {path}: {source}", path = path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The daemon went away in the middle.
    #[error("the daemon ended the connection: look at its log")]
    Ended,
    /// The daemon says no.
    #[error("{0}")]
    Failed(String),
}

/// A connection to the daemon that owns the store.
pub struct AdminClient {
    stream: UnixStream,
    path: PathBuf,
}

impl AdminClient {
    /// Connects; none if no daemon listens there.
    pub async fn connect(path: &Path) -> Result<Option<Self>, AdminError> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let connected = match ShortPath::of(path) {
            Ok(short) => UnixStream::connect(short.path()).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => Ok(Some(Self { stream, path: path.to_path_buf() })),
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
            Err(source) => Err(AdminError::Socket { path: path.to_path_buf(), source }),
        }
    }

    /// Makes one request and waits for its end; progress on the way goes to `progress`.
    pub async fn ask(
        mut self,
        request: &Request,
        mut progress: impl FnMut(&crate::PullProgress),
    ) -> Result<Answer, AdminError> {
        let path = self.path.clone();
        let failed = |source| AdminError::Socket { path: path.clone(), source };
        write_message(&mut self.stream, request).await.map_err(failed)?;
        loop {
            match read_message(&mut self.stream).await.map_err(failed)? {
                Some(Answer::Progress { progress: now }) => progress(&now),
                Some(Answer::Failed { message }) => return Err(AdminError::Failed(message)),
                Some(answer) => return Ok(answer),
                None => return Err(AdminError::Ended),
            }
        }
    }
}
