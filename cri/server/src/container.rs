//! A container as the server holds it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_container::protocol::ExitRecord;
use orlop_proto::cri;
use tokio::sync::watch;

use crate::error::RpcError;
use crate::record::{ContainerRecord, Encoded, Records};
use crate::sandbox::Sandbox;
use crate::usage::{LayerSize, Rate};

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made; may be started, stopped or removed.
    Created,
    /// Its program runs; may be stopped, removed, entered.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended; may be removed.
    Exited(ExitRecord),
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Running { .. } => "running",
            Phase::Exited(_) => "exited",
        }
    }

    pub(crate) fn cri_state(&self) -> cri::ContainerState {
        match self {
            Phase::Created => cri::ContainerState::ContainerCreated,
            Phase::Running { .. } => cri::ContainerState::ContainerRunning,
            Phase::Exited(_) => cri::ContainerState::ContainerExited,
        }
    }
}

/// A container.
pub(crate) struct Container {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) config: cri::ContainerConfig,
    pub(crate) sandbox: Arc<Sandbox>,
    /// Folder that it shares with the shim.
    pub(crate) folder: PathBuf,
    /// Starting and removing exclude one another.
    pub(crate) operation: tokio::sync::Mutex<()>,
    phase: watch::Sender<Phase>,
    record: Mutex<ContainerRecord>,
    /// It is being removed: its record is gone, and nobody is shown it any more.
    removing: AtomicBool,
    /// Processor use.
    pub(crate) rate: Rate,
    /// Size of its writable layer.
    pub(crate) layer_size: Arc<LayerSize>,
}

impl Container {
    /// The container of a record.
    pub(crate) fn new(record: ContainerRecord, config: cri::ContainerConfig, sandbox: Arc<Sandbox>) -> Container {
        let phase = record.exit.clone().map_or(Phase::Created, Phase::Exited);
        Container {
            id: record.id.clone(),
            config,
            folder: sandbox.folder.join("containers").join(&record.id),
            sandbox,
            operation: tokio::sync::Mutex::default(),
            phase: watch::Sender::new(phase),
            record: Mutex::new(record),
            removing: AtomicBool::new(false),
            rate: Rate::default(),
            layer_size: Arc::default(),
        }
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ContainerRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its cgroup, below each hierarchy.
    pub(crate) fn cgroup(&self) -> Option<String> {
        self.sandbox.cgroup(&self.id).ok()
    }

    /// Its limits, as last set.
    pub(crate) fn resources(&self) -> Option<cri::LinuxContainerResources> {
        let updated = self.lock().resources.as_ref().and_then(|resources| resources.decode().ok());
        updated.or_else(|| self.config.linux.as_ref()?.resources.clone())
    }

    /// Its limits were changed.
    pub(crate) fn set_resources(&self, resources: cri::LinuxContainerResources) {
        self.lock().resources = Some(Encoded::new(&resources));
    }

    /// Keeps the record, unless the container is being removed.
    pub(crate) fn save(&self, records: &Records) -> std::io::Result<()> {
        let record = self.lock();
        if self.is_removing() { Ok(()) } else { records.write(&*record) }
    }

    /// Whether the container is being removed.
    pub(crate) fn is_removing(&self) -> bool {
        self.removing.load(Ordering::Acquire)
    }

    /// Takes the record away, so that the next start of the server removes what is left of the container.
    pub(crate) fn begin_removal(&self, records: &Records) -> std::io::Result<()> {
        let _record = self.lock();
        records.remove::<ContainerRecord>(&self.id)?;
        self.removing.store(true, Ordering::Release);
        Ok(())
    }

    /// The removal failed; the container is there as before.
    pub(crate) fn end_removal(&self, records: &Records) -> std::io::Result<()> {
        let record = self.lock();
        self.removing.store(false, Ordering::Release);
        records.write(&*record)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Told of each change of the phase.
    pub(crate) fn follow(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The program runs. An exit that was heard of first stays. Tells whether that is news.
    pub(crate) fn set_running(&self, started_at: i64) -> bool {
        self.phase.send_if_modified(|phase| {
            let changed = *phase == Phase::Created;
            if changed {
                *phase = Phase::Running { started_at };
            }
            changed
        })
    }

    /// The container has ended. Tells whether that is news.
    pub(crate) fn set_exited(&self, exit: ExitRecord) -> bool {
        self.lock().exit = Some(exit.clone());
        self.phase.send_if_modified(|phase| {
            let news = !matches!(phase, Phase::Exited(_));
            if news {
                *phase = Phase::Exited(exit);
            }
            news
        })
    }

    pub(crate) fn metadata(&self) -> cri::ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// `namespace/pod/container`, for people.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.sandbox.pod(), self.metadata().name)
    }

    /// The name that no two containers share.
    pub(crate) fn name(&self) -> String {
        name(&self.metadata(), &self.sandbox)
    }

    /// Fails unless the program runs.
    pub(crate) fn check_running(&self) -> Result<(), RpcError> {
        match self.phase() {
            Phase::Running { .. } => Ok(()),
            other => Err(RpcError::State {
                kind: "container",
                id: self.id.clone(),
                state: other.name(),
                wanted: "it has to be running",
            }),
        }
    }
}

/// The name of a container of a sandbox.
pub(crate) fn name(metadata: &cri::ContainerMetadata, sandbox: &Sandbox) -> String {
    let pod = sandbox.metadata();
    format!("{}_{}_{}_{}_{}", metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt)
}
