//! Operations that run beside the worker, and what they bring home.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use orlop_agent_core::ports::MountedVolume;
use orlop_agent_core::probe::{ProbeKind, ProbeOutcome};
use orlop_agent_core::runtime::SandboxSpec;
use tokio::task::AbortHandle;

use crate::image::{ImageFailure, ReadyImage};
use crate::sandbox::SandboxError;
use crate::start::{StartError, Started};
use crate::worker::Worker;

/// What an operation brings home.
#[derive(Debug)]
pub(super) enum Done {
    Volumes(Result<BTreeMap<String, MountedVolume>, String>),
    Refreshed(Result<BTreeMap<String, MountedVolume>, String>),
    Sandbox(Result<Arc<SandboxSpec>, SandboxError>),
    Image { container: String, image: String, result: Result<ReadyImage, ImageFailure> },
    Start { container: String, result: Result<Started, StartError> },
    Stop { id: String, result: Result<(), String> },
    Remove { id: String, result: Result<(), String> },
    Look(Result<(), String>),
    TearDown(Result<(), String>),
    Message { id: String },
    Probe { container: String, kind: ProbeKind, id: String, took: Duration, outcome: ProbeOutcome },
    Files(Result<(), String>),
}

/// What an operation that panics brings home.
pub(super) const PANICKED: &str = "the operation ended by a fault of the agent; see its log";

impl Worker {
    /// Runs an operation beside the worker; if it panics, `fallback` comes home, and the pod goes on.
    pub(super) fn spawn(
        &mut self,
        fallback: Done,
        operation: impl Future<Output = Done> + Send + 'static,
    ) -> AbortHandle {
        // A probe is no work on the pod.
        let under_way = (!matches!(fallback, Done::Probe { .. })).then(|| self.accounts.under_way.clone());
        let guarded = async move {
            let _under_way = under_way;
            std::panic::AssertUnwindSafe(operation).catch_unwind().await.unwrap_or(fallback)
        };
        self.operations.spawn(self.shared.config.pace.task("operation", guarded))
    }
}
