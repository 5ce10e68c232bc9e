//! What the pods have on the node beside directories: volumes and cgroups. They outlive the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::{
    MountedVolume, PodCgroupLimits, PodCgroups, PortError, PortFuture, VolumeError, Volumes,
};

use crate::sim::{Fault, Kind, Sim, State};

#[derive(Default)]
pub struct DiskState {
    pub volumes: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
}

/// The ports to the disk.
pub struct Disk(pub Arc<Sim>);

const DEADLINE: u64 = 60_000;

fn volume_error<T>(fault: Fault) -> Result<T, VolumeError> {
    Err(VolumeError::SetUp { volume: "v".into(), message: format!("{fault:?}") })
}

fn port_error<T>(fault: Fault) -> Result<T, PortError> {
    Err(PortError::Unavailable { what: "cgroup".into(), message: format!("{fault:?}") })
}

impl Volumes for Disk {
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>> {
        let uid = containers::uid(pod).to_owned();
        Box::pin(self.0.call(Kind::Own, format!("volumes up {uid}"), DEADLINE, volume_error, move |state| {
            state.makes(&uid);
            state.disk.volumes.insert(uid);
            Ok(BTreeMap::new())
        }))
    }

    fn tear_down<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), VolumeError>> {
        let uid = pod_uid.to_owned();
        Box::pin(self.0.call(Kind::Own, format!("volumes down {uid}"), DEADLINE, volume_error, move |state| {
            nothing_runs(state, &uid, "volumes are taken down");
            state.disk.volumes.remove(&uid);
            Ok(())
        }))
    }

    fn pods_on_disk(&self) -> Vec<String> {
        self.0.state().disk.volumes.iter().cloned().collect()
    }
}

impl PodCgroups for Disk {
    fn ensure<'a>(
        &'a self,
        pod_uid: &'a str,
        _qos_class: &'a str,
        _limits: &'a PodCgroupLimits,
    ) -> PortFuture<'a, Result<String, PortError>> {
        let uid = pod_uid.to_owned();
        Box::pin(self.0.call(Kind::Own, format!("cgroup up {uid}"), DEADLINE, port_error, move |state| {
            let path = format!("/kubepods/pod{uid}");
            state.makes(&uid);
            state.disk.cgroups.insert(uid);
            Ok(path)
        }))
    }

    fn remove<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), PortError>> {
        let uid = pod_uid.to_owned();
        Box::pin(self.0.call(Kind::Own, format!("cgroup down {uid}"), DEADLINE, port_error, move |state| {
            nothing_runs(state, &uid, "the cgroup is removed");
            state.disk.cgroups.remove(&uid);
            Ok(())
        }))
    }

    fn pods_on_disk(&self) -> Vec<String> {
        self.0.state().disk.cgroups.iter().cloned().collect()
    }
}

fn nothing_runs(state: &mut State, uid: &str, what: &str) {
    let running = state.runtime.running(uid);
    if !running.is_empty() && !state.laws.is_haunted(uid) {
        state.laws.broken(format!("{what} while {running:?} of {uid} run"));
    }
}
