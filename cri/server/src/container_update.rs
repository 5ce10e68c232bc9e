//! `UpdateContainerResources`: limits of a container that is there.

use std::sync::Arc;

use orlop_proto::cri;

use crate::container::{Container, Phase};
use crate::error::{RpcError, argument, file};
use crate::scope;
use crate::server::{Server, blocking};

/// Sets the limits that are given; the others stay. When the kernel refuses one, all are as before.
pub(crate) async fn update(
    server: Arc<Server>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    let _operation = container.operation.lock().await;
    if container.is_removing() {
        return Err(RpcError::NotFound { kind: "container", id: container.id.clone() });
    }
    let asked = request.linux.ok_or_else(|| argument("linux", "is missing: name the limits to set"))?;
    let before = container.resources().unwrap_or_default();
    let after = merge(&before, &asked);
    if !matches!(container.phase(), Phase::Exited(_)) {
        apply(&server, &container, before, &after).await?;
    }
    container.set_resources(after);
    container.save(&server.records).map_err(file("write the record of container", &container.id))?;
    tracing::info!(container = container.title(), id = container.id, "the container's limits are set");
    Ok(cri::UpdateContainerResourcesResponse {})
}

/// Sets limits in the cgroup, where the kernel refuses what can't be had, and then tells systemd where that made the
/// cgroup: it writes what it was told last over everything whenever it reads its files again.
async fn apply(
    server: &Arc<Server>,
    container: &Arc<Container>,
    before: cri::LinuxContainerResources,
    after: &cri::LinuxContainerResources,
) -> Result<(), RpcError> {
    let Some(path) = container.cgroup() else { return Ok(()) };
    let write = |wanted: cri::LinuxContainerResources, before: cri::LinuxContainerResources| {
        let (server, object, path) = (server.clone(), container.title(), path.clone());
        blocking(move || write(&server, object, &path, &wanted, &before))
    };
    write(after.clone(), before.clone()).await?;
    let told = scope::set(&path, &container.title(), &orlop_cri_spec::resources(after)).await;
    if told.is_err() {
        write(before.clone(), before).await?;
    }
    told
}

fn write(
    server: &Server,
    object: String,
    path: &str,
    wanted: &cri::LinuxContainerResources,
    before: &cri::LinuxContainerResources,
) -> Result<(), RpcError> {
    let set = |wanted: &cri::LinuxContainerResources| server.cgroups.set(path, &orlop_cri_spec::resources(wanted));
    set(wanted).map_err(|source| {
        if let Err(error) = set(before) {
            tracing::warn!(container = object, %error, "take back the limits that were set");
        }
        RpcError::Limits { object, source }
    })
}

/// What holds after an update: what is asked for, and what was there where nothing is.
fn merge(before: &cri::LinuxContainerResources, asked: &cri::LinuxContainerResources) -> cri::LinuxContainerResources {
    let number = |asked: i64, before: i64| if asked != 0 { asked } else { before };
    let text = |asked: &String, before: &String| if asked.is_empty() { before.clone() } else { asked.clone() };
    let mut unified = before.unified.clone();
    unified.extend(asked.unified.clone());
    cri::LinuxContainerResources {
        cpu_period: number(asked.cpu_period, before.cpu_period),
        cpu_quota: number(asked.cpu_quota, before.cpu_quota),
        cpu_shares: number(asked.cpu_shares, before.cpu_shares),
        memory_limit_in_bytes: number(asked.memory_limit_in_bytes, before.memory_limit_in_bytes),
        oom_score_adj: number(asked.oom_score_adj, before.oom_score_adj),
        cpuset_cpus: text(&asked.cpuset_cpus, &before.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems, &before.cpuset_mems),
        hugepage_limits: match asked.hugepage_limits.is_empty() {
            true => before.hugepage_limits.clone(),
            false => asked.hugepage_limits.clone(),
        },
        unified,
        memory_swap_limit_in_bytes: number(asked.memory_swap_limit_in_bytes, before.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_stays() {
        let before = cri::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let asked = cri::LinuxContainerResources { memory_limit_in_bytes: 2 << 20, cpu_quota: 5, ..Default::default() };
        let after = merge(&before, &asked);
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes, after.cpu_quota), (512, 2 << 20, 5));
        assert_eq!(after.cpuset_cpus, "0");
    }
}
