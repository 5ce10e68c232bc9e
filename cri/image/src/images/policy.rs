//! What can be told anew while the images stay: where they come from, which are let in, which are kept.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::pins::Pins;
use super::verify::Verifiers;
use super::{ImageConfig, Images, LAYERS_AT_ONCE_MAX, ShortNames};
use crate::error::ImageError;
use crate::registry::RegistryClient;

/// What holds for pulls that begin now.
pub(super) struct Policy {
    pub(super) client: Arc<RegistryClient>,
    pub(super) pins: Pins,
    pub(super) short_names: ShortNames,
    pub(super) verifiers: Verifiers,
    /// Layers of one pull that are fetched at the same time.
    pub(super) parallel_layers: usize,
}

impl Policy {
    pub(super) fn new(config: &ImageConfig) -> Result<Policy, ImageError> {
        Ok(Policy {
            client: Arc::new(RegistryClient::new(config.registries.clone())),
            pins: Pins::new(&config.pinned)?,
            short_names: config.short_names,
            verifiers: Verifiers {
                folder: config.verifier_dir.clone(),
                count_max: config.verifiers_max,
                timeout: Duration::from_secs(config.verifier_timeout_seconds.max(1)),
            },
            parallel_layers: config.parallel_layers.clamp(1, LAYERS_AT_ONCE_MAX),
        })
    }
}

impl Images {
    pub(super) fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over all of a configuration but the folder and the bounds of layers. Pulls that run end as they began.
    ///
    /// # Errors
    /// When a pattern is wrong; nothing has changed then.
    pub fn configure(&self, config: &ImageConfig) -> Result<(), ImageError> {
        let policy = Arc::new(Policy::new(config)?);
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
        Ok(())
    }
}
