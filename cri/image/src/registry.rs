//! The registry client (OCI distribution spec 1.1, pull side).

mod auth;
mod blob;
mod challenge;
mod client;
mod config;
mod docker_config;
mod endpoint;
mod hosts;
mod manifest;
mod sources;
mod transport;
mod trust;

pub use blob::BlobStream;
pub use client::RegistryClient;
pub use config::{Credentials, HostConfig, RegistriesConfig, is_meant_for};
pub use manifest::FetchedDocument;
pub use sources::Sources;

/// A registry refused, failed or answered nonsense.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// 404 for the manifest.
    #[error("{registry} has no {what}: check the name and the tag")]
    NotFound {
        /// Host of the registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// 401, after everything that could be tried.
    #[error("{registry} wants credentials ({detail}): add an imagePullSecret for it, or correct the one that is used")]
    Unauthorized {
        /// Host of the registry.
        registry: String,
        /// What the registry said.
        detail: String,
    },
    /// 403.
    #[error("{registry} denies access ({detail}): the credentials may not pull this repository")]
    Denied {
        /// Host of the registry.
        registry: String,
        /// What the registry said.
        detail: String,
    },
    /// The challenge of a 401 can't be answered safely.
    #[error("{registry} asks to authenticate in a way that is refused: {why}")]
    Challenge {
        /// Host of the registry.
        registry: String,
        /// What is wrong with the challenge and what would allow it.
        why: String,
    },
    /// 429 for longer than we wait.
    #[error("{registry} limits the rate of pulls (429): wait, or use credentials with a higher limit")]
    RateLimited {
        /// Host of the registry.
        registry: String,
    },
    /// No answer, a broken connection or 5xx, after all tries.
    #[error("{registry} is unavailable after {tries} tries: {detail}")]
    Unavailable {
        /// Host of the registry.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// The last failure.
        detail: String,
    },
    /// Bytes that are not those of the digest, or more or fewer than they should be.
    #[error("{registry} sent wrong content for {digest}: {why}")]
    WrongContent {
        /// Host of the registry.
        registry: String,
        /// Digest asked for.
        digest: String,
        /// What differs.
        why: String,
    },
    /// An answer that makes no sense.
    #[error("{registry} gave an answer that is refused: {why}")]
    Protocol {
        /// Host of the registry.
        registry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Our own configuration for the registry is wrong.
    #[error("configuration of registry {registry}: {why}")]
    Configuration {
        /// Host of the registry.
        registry: String,
        /// Which file or field is wrong.
        why: String,
    },
}

impl RegistryError {
    /// The same, with what the servers said that were asked before.
    fn after(mut self, earlier: &[String]) -> Self {
        let (Self::NotFound { registry, .. }
        | Self::Unauthorized { registry, .. }
        | Self::Denied { registry, .. }
        | Self::Challenge { registry, .. }
        | Self::RateLimited { registry }
        | Self::Unavailable { registry, .. }
        | Self::WrongContent { registry, .. }
        | Self::Protocol { registry, .. }
        | Self::Configuration { registry, .. }) = &mut self;
        if !earlier.is_empty() {
            registry.push_str(&format!(" (tried after its mirrors: {})", earlier.join("; ")));
        }
        self
    }
}
