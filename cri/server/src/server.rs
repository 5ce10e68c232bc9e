//! What all requests share: configuration, images, network, streams, events and the store.

use std::sync::{Arc, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_container::protocol::ExitRecord;
use orlop_image::Images;
use orlop_kernel::cgroup::Cgroups;
use orlop_network::Network;
use orlop_proto::cri::ContainerEventType;
use ring::rand::{SecureRandom, SystemRandom};

use crate::apparmor::AppArmor;
use crate::config::CriConfig;
use crate::container::Container;
use crate::error::RpcError;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::network_status::NetworkStatus;
use crate::record::Records;
use crate::reload::Live;
use crate::sandbox::Sandbox;
use crate::store::Store;

/// The server behind all requests.
pub(crate) struct Server {
    pub(crate) config: CriConfig,
    pub(crate) images: Arc<Images>,
    pub(crate) network: Network,
    pub(crate) network_status: NetworkStatus,
    pub(crate) streaming: Arc<orlop_streaming::Server>,
    pub(crate) records: Records,
    pub(crate) store: Store,
    pub(crate) events: Events,
    pub(crate) cgroups: Cgroups,
    pub(crate) metrics: Metrics,
    /// What can be changed while the server runs.
    pub(crate) live: RwLock<Arc<Live>>,
    pub(crate) apparmor: AppArmor,
    /// Pods can have user namespaces on this machine.
    pub(crate) user_namespaces: bool,
}

impl Server {
    /// A container's program runs, as its shim says: tells who follows, once.
    pub(crate) fn container_started(&self, container: &Arc<Container>, started_at: i64) {
        if container.set_running(started_at) {
            self.announce(ContainerEventType::ContainerStartedEvent, &container.id, &container.sandbox);
        }
    }

    /// A container has ended, as its shim says: keeps the record and tells who follows.
    pub(crate) fn container_exited(&self, container: &Arc<Container>, exit: ExitRecord) {
        tracing::info!(container = container.title(), id = container.id, exit_code = exit.exit_code, "container ended");
        let oom_killed = exit.oom_killed;
        if !container.set_exited(exit) || container.is_removing() {
            return;
        }
        if oom_killed {
            self.metrics.count_oom_kill();
        }
        if let Err(error) = container.save(&self.records) {
            tracing::warn!(container = container.title(), %error, "the end of the container could not be recorded; after a reboot its exit code will be unknown");
        }
        self.announce(ContainerEventType::ContainerStoppedEvent, &container.id, &container.sandbox);
    }

    /// Pause has ended, or the shim.
    pub(crate) fn sandbox_ended(&self, sandbox: &Arc<Sandbox>) {
        let was_ready = std::mem::replace(&mut sandbox.state().ready, false);
        if was_ready {
            self.announce(ContainerEventType::ContainerStoppedEvent, &sandbox.id, sandbox);
        }
    }

    /// Tells who follows the events, with the state of the whole pod.
    pub(crate) fn announce(&self, kind: ContainerEventType, id: &str, sandbox: &Arc<Sandbox>) {
        self.metrics.count_event(kind);
        self.events.publish(kind, id, || {
            let containers = self.store.shown_containers_of(&sandbox.id);
            let statuses = containers.iter().map(|container| crate::container_status::status_of(container));
            (crate::sandbox_status::status_of(sandbox), statuses.collect())
        });
    }
}

/// A new id: 64 hexadecimal digits.
pub(crate) fn new_id() -> Result<String, RpcError> {
    let mut bytes = [0u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RpcError::File {
        step: "read random bytes for an id from",
        path: "getrandom(2)".into(),
        source: std::io::Error::other("the system has none"),
    })?;
    Ok(hex::encode(bytes))
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Does file work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcError> + Send + 'static,
) -> Result<T, RpcError> {
    tokio::task::spawn_blocking(work).await?
}
