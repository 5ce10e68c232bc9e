//! `ContainerStatus`.

use std::collections::{BTreeMap, HashMap};

use orlop_proto::cri;
use serde_json::{Value, json};

use crate::container::{Container, Phase};
use crate::error::RpcError;
use crate::server::Server;
use crate::signals;

/// The state of a container.
pub(crate) fn status(
    server: &Server,
    request: &cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    if container.is_removing() {
        return Err(RpcError::NotFound { kind: "container", id: container.id.clone() });
    }
    Ok(cri::ContainerStatusResponse {
        status: Some(status_of(&container)),
        info: if request.verbose { info(&container) } else { HashMap::new() },
    })
}

/// A container as CRI shows it.
pub(crate) fn status_of(container: &Container) -> cri::ContainerStatus {
    let (record, phase) = (container.record(), container.phase());
    let config = &container.config;
    let mut status = cri::ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: phase.cri_state().into(),
        created_at: record.created_at,
        image: Some(cri::ImageSpec { image: record.image_name, ..config.image.clone().unwrap_or_default() }),
        image_ref: record.image_ref,
        image_id: record.image_id,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(config, &record.volume_refs),
        log_path: record.log_path.map(|path| path.display().to_string()).unwrap_or_default(),
        resources: container
            .resources()
            .map(|linux| cri::ContainerResources { linux: Some(linux), ..Default::default() }),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: record.user.uid.into(),
                gid: record.user.gid.into(),
                supplemental_groups: record.user.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: signals::to_cri(record.stop_signal).into(),
        ..Default::default()
    };
    match phase {
        Phase::Created => {}
        Phase::Running { started_at } => status.started_at = started_at,
        Phase::Exited(exit) => {
            status.reason = reason(&exit).into();
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.exit_code;
            status.message = exit.message.unwrap_or_default();
        }
    }
    status
}

/// Mounts as they were asked for, with the ids of the images among them.
fn mounts(config: &cri::ContainerConfig, volume_refs: &BTreeMap<String, String>) -> Vec<cri::Mount> {
    let mut mounts = config.mounts.clone();
    for image in mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
        image.image_ref = volume_refs.get(&image.image).cloned().unwrap_or_default();
    }
    mounts
}

/// The reason of an end, in the words that the kubelet hands on.
fn reason(exit: &orlop_container::protocol::ExitRecord) -> &'static str {
    match exit.exit_code {
        _ if exit.oom_killed && exit.exit_code != 0 => "OOMKilled",
        128 if exit.message.is_some() => "StartError",
        255 if exit.message.is_some() => "Unknown",
        0 => "Completed",
        _ => "Error",
    }
}

/// What `crictl inspect` shows beside the status, under the names that users of other runtimes know.
fn info(container: &Container) -> HashMap<String, String> {
    let spec = std::fs::read(container.folder.join("config.json")).unwrap_or_default();
    let spec: Value = serde_json::from_slice(&spec).unwrap_or_default();
    let record = container.record();
    let running = matches!(container.phase(), Phase::Running { .. });
    let info = json!({
        "sandboxID": container.sandbox.id,
        "pid": if running { record.pid } else { 0 },
        "removing": false,
        "snapshotKey": container.id,
        "snapshotter": "overlayfs",
        "runtimeType": "orlop",
        "privileged": crate::container_create::security(&container.config).privileged,
        "config": orlop_proto::json::to_json("ContainerConfig", &container.config),
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_string(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use orlop_container::protocol::ExitRecord;

    use super::*;

    #[test]
    fn reasons_of_ends() {
        let table = [
            (0, false, None, "Completed"),
            (1, false, None, "Error"),
            (137, true, None, "OOMKilled"),
            (137, false, None, "Error"),
            (128, false, Some("no such file"), "StartError"),
            (128, false, None, "Error"),
            (255, false, Some("lost"), "Unknown"),
            (255, false, None, "Error"),
        ];
        for (exit_code, oom_killed, message, expected) in table {
            let exit = ExitRecord {
                version: 1,
                id: "c".into(),
                exit_code,
                started_at: 1,
                finished_at: 2,
                oom_killed,
                message: message.map(str::to_string),
            };
            assert_eq!(reason(&exit), expected, "{exit_code} {oom_killed} {message:?}");
        }
    }
}
