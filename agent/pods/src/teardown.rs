//! Taking down what a pod had on the node, once none of its processes is left. Each step can be repeated.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::EventType;

use crate::recorder::pod_event;
use crate::shared::Shared;
use crate::sub_path::release_sub_paths;

const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// Takes down sub paths, volumes and cgroup. Returns the first error in words.
pub(crate) async fn tear_down(shared: &Shared, pod: &Pod) -> Result<(), String> {
    let uid = containers::uid(pod);
    let folder = shared.directories.sub_paths(uid);
    let release = shared.config.pace.blocking(move || release_sub_paths(&folder));
    match tokio::time::timeout(STEP_DEADLINE, release).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => return Err(format!("sub paths of volumes: {error}")),
        Ok(Err(error)) => return Err(format!("sub paths of volumes: {error}")),
        Err(_) => return Err("sub paths of volumes: unmounting hangs".to_owned()),
    }
    let volumes = async {
        match tokio::time::timeout(STEP_DEADLINE, shared.ports.volumes.tear_down(uid)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                pod_event(&*shared.ports.events, pod, EventType::Warning, "FailedUnMount", &error.to_string());
                Err(error.to_string())
            }
            Err(_) => Err("taking down the volumes hangs".to_owned()),
        }
    };
    let cgroup = async {
        match tokio::time::timeout(STEP_DEADLINE, shared.ports.cgroups.remove(uid)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("removing the cgroup hangs".to_owned()),
        }
    };
    let (volumes, cgroup) = tokio::join!(volumes, cgroup);
    volumes.and(cgroup)?;
    // Only now does nothing on the node carry the pod's ids any more.
    let (ranges, owned) = (shared.user_namespaces.clone(), uid.to_owned());
    match shared.config.pace.blocking(move || ranges.release(&owned)).await {
        Ok(result) => result.map_err(|error| format!("ids of the pod's user namespace: {error}")),
        Err(error) => Err(format!("ids of the pod's user namespace: {error}")),
    }
}

/// Removes the pod's directory and logs, when the pod is gone from the API as well.
pub(crate) async fn remove_files(shared: &Shared, pod: &Pod) -> Result<(), String> {
    let directories = shared.directories.clone();
    let uid = containers::uid(pod).to_owned();
    let remove = shared.config.pace.blocking(move || {
        directories.remove_pod_logs(&uid);
        directories.remove_pod(&uid)
    });
    match tokio::time::timeout(STEP_DEADLINE, remove).await {
        Ok(Ok(result)) => result.map_err(|error| format!("directory of the pod: {error}")),
        Ok(Err(error)) => Err(format!("directory of the pod: {error}")),
        Err(_) => Err("directory of the pod: removing it hangs".to_owned()),
    }
}
