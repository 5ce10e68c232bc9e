//! What a running server can be told anew: images, runtime handlers, folders of devices.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use orlop_image::ImageError;
use tokio::sync::{mpsc, oneshot};

use crate::config::CriConfig;
use crate::handlers::Handlers;
use crate::server::Server;

/// A configuration to be taken over while the server runs. What can't be changed then is left as it is: sockets, addresses,
/// folders of state, programs of the house, the network.
#[derive(Debug)]
pub struct Reload {
    /// The whole configuration.
    pub config: CriConfig,
    /// Where to say how it went; after an error everything is as before.
    pub applied: oneshot::Sender<Result<(), ImageError>>,
}

/// The part that can be changed.
pub(crate) struct Live {
    pub(crate) handlers: Handlers,
    /// Folders of CDI files.
    pub(crate) cdi_dirs: Vec<PathBuf>,
}

impl Live {
    pub(crate) fn new(config: &CriConfig) -> Live {
        Live { handlers: Handlers::new(&config.runtimes), cdi_dirs: config.cdi_dirs.clone() }
    }
}

impl Server {
    /// What holds for requests that begin now.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self, config: &CriConfig) -> Result<(), ImageError> {
        self.images.configure(&config.images)?;
        let live = Arc::new(Live::new(config));
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
        Ok(())
    }
}

/// Takes over what comes, until nobody can send any more.
pub(crate) async fn follow(server: Arc<Server>, mut reloads: mpsc::Receiver<Reload>) {
    while let Some(Reload { config, applied }) = reloads.recv().await {
        let _ = applied.send(server.reload(&config));
    }
}
