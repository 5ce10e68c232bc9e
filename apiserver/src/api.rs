//! What every part of a running server shares.

use std::sync::atomic::AtomicBool;

use tokio_util::sync::CancellationToken;

use crate::auth::Tokens;
use crate::config::ApiServerConfig;
use crate::proxy::Kubelets;
use crate::storage::Store;

/// A running server.
pub struct Api {
    /// What it was told.
    pub config: ApiServerConfig,
    /// Its objects.
    pub store: Store,
    /// Its tokens.
    pub tokens: Tokens,
    /// Its way to kubelets.
    pub kubelets: Kubelets,
    /// The authority's certificates, PEM: what pods find as `ca.crt`.
    pub ca_pem: String,
    /// True once the first objects are there.
    pub started: AtomicBool,
    /// Requests that may be answered at the same time, watches and streams apart.
    pub places: tokio::sync::Semaphore,
    /// Ends everything.
    pub cancel: CancellationToken,
}
