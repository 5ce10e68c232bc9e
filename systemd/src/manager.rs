//! What systemd's manager is asked to do with units.

use std::time::Duration;

use orlop_kernel::cgroup::Resources;
use orlop_kernel::cgroup::unit::Scope;
use tokio::sync::Semaphore;

use crate::SystemdError;
use crate::properties;

/// How long systemd may take for one request with the job that comes of it.
const LIMIT: Duration = Duration::from_secs(30);

/// Requests at the same time; a bus has 256 connections for a user.
static TURNS: Semaphore = Semaphore::const_new(16);

/// The way to systemd; it holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manager;

impl Manager {
    /// Asks systemd for its version.
    ///
    /// # Errors
    /// When it is not there; says what to do.
    pub async fn version(self) -> Result<String, SystemdError> {
        within("itself", wire::version()).await
    }

    /// Makes a scope with a process in it and returns once the process is there. The scope ends with its last process.
    ///
    /// # Errors
    /// When systemd refuses or takes too long.
    pub async fn start_scope(
        self,
        scope: &Scope,
        description: &str,
        pid: u32,
        resources: &Resources,
    ) -> Result<(), SystemdError> {
        let properties = properties::of_scope(&scope.slice, description, pid, resources);
        within(&scope.name, wire::start(&scope.name, &properties)).await
    }

    /// Makes a slice, or sets the limits of the one that is there.
    ///
    /// # Errors
    /// When systemd refuses or takes too long.
    pub async fn start_slice(self, slice: &str, description: &str, resources: &Resources) -> Result<(), SystemdError> {
        let properties = properties::of_slice(description, resources);
        match within(slice, wire::start(slice, &properties)).await {
            Err(error) if error.is_there() => self.set_limits(slice, resources).await,
            other => other,
        }
    }

    /// Sets limits of a unit; those that are not given stay as they are.
    ///
    /// # Errors
    /// When there is no such unit, or systemd refuses.
    pub async fn set_limits(self, unit: &str, resources: &Resources) -> Result<(), SystemdError> {
        let properties = properties::limits(resources);
        if properties.is_empty() {
            return Ok(());
        }
        within(unit, wire::set(unit, &properties)).await
    }

    /// Ends a unit with what is in it and makes systemd forget it; fine when there is none.
    ///
    /// # Errors
    /// When systemd refuses or takes too long.
    pub async fn stop(self, unit: &str) -> Result<(), SystemdError> {
        within(unit, wire::stop(unit)).await
    }
}

async fn within<T>(unit: &str, work: impl Future<Output = Result<T, SystemdError>>) -> Result<T, SystemdError> {
    let work = async {
        // Never closed, so that there always is a turn.
        let _turn = TURNS.acquire().await;
        work.await
    };
    let late = |_| SystemdError::Late { unit: unit.into(), seconds: LIMIT.as_secs() };
    tokio::time::timeout(LIMIT, work).await.map_err(late)?
}

#[cfg(feature = "bus")]
use crate::bus as wire;

/// Without the way to systemd.
#[cfg(not(feature = "bus"))]
mod wire {
    use crate::SystemdError;
    use crate::properties::Property;

    pub(super) async fn version() -> Result<String, SystemdError> {
        Err(SystemdError::NotBuilt)
    }

    pub(super) async fn start(_unit: &str, _properties: &[Property]) -> Result<(), SystemdError> {
        Err(SystemdError::NotBuilt)
    }

    pub(super) async fn set(_unit: &str, _properties: &[Property]) -> Result<(), SystemdError> {
        Err(SystemdError::NotBuilt)
    }

    pub(super) async fn stop(_unit: &str) -> Result<(), SystemdError> {
        Err(SystemdError::NotBuilt)
    }
}
