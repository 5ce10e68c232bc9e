//! Whether all has come right: what is wanted runs, what is not is gone, and the API says so.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use orlop_agent_core::containers::{self, app_containers, is_mirror};
use orlop_agent_core::labels::CONFIG_MIRROR;
use orlop_agent_core::ports::NodeView;

use crate::sim::State;

/// What there is beside the simulated world.
pub struct Left<'a> {
    pub folder: &'a Path,
    pub workers: usize,
    pub view: &'a dyn NodeView,
}

/// The first thing that is not as it should be.
pub fn unsettled(state: &State, left: &Left<'_>) -> Option<String> {
    if state.under_way > 0 {
        return Some(format!("{} calls are under way", state.under_way));
    }
    if let Some(id) = state.runtime.ending() {
        return Some(format!("{id} is about to end"));
    }
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut held: BTreeSet<String> = BTreeSet::new();
    let on_file = static_uid(left.folder);
    for pod in state.api.pods() {
        let uid = match containers::annotation(&pod, CONFIG_MIRROR) {
            Some(uid) => uid.to_owned(),
            None => containers::uid(&pod).to_owned(),
        };
        if is_mirror(&pod) && on_file.as_ref() != Some(&uid) {
            return Some(format!("the mirror of {uid} is there without its file"));
        }
        if let Some(complaint) = pod_complaint(state, &pod, &uid, &mut held) {
            return Some(format!("{} {uid}: {complaint}", containers::name(&pod)));
        }
        wanted.insert(uid);
    }
    if let Some(uid) = on_file
        && !wanted.contains(&uid)
    {
        return Some(format!("static pod {uid} has no mirror"));
    }
    let foreign = |uids: Vec<String>, wanted: &BTreeSet<String>| uids.into_iter().find(|uid| !wanted.contains(uid));
    if let Some(uid) = foreign(state.runtime.left(), &wanted) {
        return Some(format!("the runtime still has something of {uid}"));
    }
    let on_disk = state.disk.volumes.iter().chain(&state.disk.cgroups).cloned().collect();
    if let Some(uid) = foreign(on_disk, &held) {
        return Some(format!("volumes or cgroup of {uid} are there"));
    }
    if let Some(uid) = foreign(folders(left.folder), &wanted) {
        return Some(format!("directories of {uid} are there"));
    }
    if left.workers != wanted.len() {
        return Some(format!("{} workers for {} pods", left.workers, wanted.len()));
    }
    let shown = left.view.pods().len();
    (shown != wanted.len()).then(|| format!("the node view shows {shown} pods for {}", wanted.len()))
}

fn pod_complaint(state: &State, pod: &Pod, uid: &str, held: &mut BTreeSet<String>) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("is still there, though deleted".into());
    }
    let status = pod.status.clone().unwrap_or_default();
    match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => {
            return state.runtime.alive(uid).then(|| "has ended, but something of it is alive".into());
        }
        Some("Running") => {}
        other => return Some(format!("is {other:?}")),
    }
    if pod.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_some()) {
        return Some("has a deadline to come".into());
    }
    held.insert(uid.to_owned());
    let running = state.runtime.running(uid);
    let mut said = BTreeSet::new();
    for status in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
        if status.state.as_ref().is_some_and(|state| state.running.is_some()) {
            said.insert(status.container_id.clone().unwrap_or_default());
        }
    }
    let sidecars = status.init_container_statuses.iter().flatten();
    for status in sidecars.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some())) {
        if !status.ready {
            return Some(format!("{} runs, but is not ready", status.name));
        }
    }
    let runs: BTreeSet<String> = running.iter().map(|id| format!("sim://{id}")).collect();
    if runs != said {
        return Some(format!("{said:?} are said to run, but {running:?} do"));
    }
    let statuses: Vec<ContainerStatus> = status.container_statuses.unwrap_or_default();
    for container in app_containers(pod) {
        let Some(status) = statuses.iter().find(|status| status.name == container.name()) else {
            return Some(format!("{} has no status", container.name()));
        };
        let container_state = status.state.clone().unwrap_or_default();
        if container_state.waiting.is_some() || container_state.running.is_some() && !status.ready {
            return Some(format!("{} is {container_state:?}", container.name()));
        }
    }
    if running.is_empty() {
        return Some("is Running, but nothing runs".into());
    }
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let all_run = statuses.iter().all(|status| status.ready);
    (all_run && !is_mirror(pod) && ready.is_none_or(|ready| ready.status != "True"))
        .then(|| format!("all run, but Ready is {ready:?}"))
}

/// Uid of the static pod that is wanted.
fn static_uid(folder: &Path) -> Option<String> {
    let text = std::fs::read(folder.join("static").join("s.json")).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    value["metadata"]["uid"].as_str().map(str::to_owned)
}

/// Uids of pods with a directory.
fn folders(folder: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let logs = names(&folder.join("logs")).into_iter();
    let mut uids = names(&folder.join("kubelet").join("pods"));
    uids.extend(logs.filter_map(|name| name.rsplit_once('_').map(|(_, uid)| uid.to_owned())));
    uids.sort();
    uids
}
