//! `ContainerStats`, `ListContainerStats` and their stream.

use std::sync::Arc;
use std::time::Instant;

use orlop_kernel::cgroup::{Pressure, PressureKind, PressureLine};
use orlop_proto::cri;

use crate::container::{Container, Phase};
use crate::error::RpcError;
use crate::sandbox_list::has_labels;
use crate::server::{Server, now};

/// What one container uses.
pub(crate) async fn one(
    server: Arc<Server>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    let stats = stats_of(&server, &container).await;
    Ok(cri::ContainerStatsResponse { stats: Some(stats) })
}

/// What all containers that fit a filter use.
pub(crate) async fn list(server: &Server, filter: Option<cri::ContainerStatsFilter>) -> Vec<cri::ContainerStats> {
    let filter = filter.unwrap_or_default();
    let fits = |container: &Arc<Container>| {
        !container.is_removing()
            && container.id.starts_with(&filter.id)
            && container.sandbox.id.starts_with(&filter.pod_sandbox_id)
            && has_labels(&container.config.labels, &filter.label_selector)
    };
    let containers: Vec<Arc<Container>> = server.store.containers().into_iter().filter(fits).collect();
    futures::future::join_all(containers.iter().map(|container| stats_of(server, container))).await
}

/// What a container uses. Processor and memory are counted as long as it has not ended.
pub(crate) async fn stats_of(server: &Server, container: &Container) -> cri::ContainerStats {
    let layer = container.layer_size.get(server.config.container_folder(&container.id).join("upper")).await;
    let at = now();
    let mut stats = cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: container.id.clone(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        writable_layer: layer.map(|size| cri::FilesystemUsage {
            timestamp: at,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: server.images.root().display().to_string() }),
            used_bytes: number(size.bytes),
            inodes_used: number(size.inodes),
        }),
        ..Default::default()
    };
    if matches!(container.phase(), Phase::Exited(_)) {
        return stats;
    }
    let Some(path) = container.cgroup() else { return stats };
    stats.cpu = cpu(server, &path, |nanoseconds| container.rate.next(Instant::now(), nanoseconds));
    let memory = server.cgroups.memory_usage(&path);
    stats.memory = memory.as_ref().map(|usage| self::memory(server, &path, usage));
    stats.swap = memory.as_ref().and_then(|usage| {
        let used = usage.swap?;
        Some(cri::SwapUsage {
            timestamp: at,
            swap_available_bytes: usage.swap_limit.and_then(|limit| number(limit.saturating_sub(used))),
            swap_usage_bytes: number(used),
        })
    });
    stats.io = io(server, &path);
    stats
}

/// Processor use of a cgroup.
pub(crate) fn cpu(server: &Server, path: &str, rate: impl FnOnce(u64) -> Option<u64>) -> Option<cri::CpuUsage> {
    let nanoseconds = server.cgroups.cpu_time(path)?;
    Some(cri::CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: number(nanoseconds),
        usage_nano_cores: rate(nanoseconds).and_then(number),
        psi: server.cgroups.pressure(path, PressureKind::Cpu).map(psi),
    })
}

/// Memory use of a cgroup.
pub(crate) fn memory(server: &Server, path: &str, usage: &orlop_kernel::cgroup::MemoryUsage) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: now(),
        working_set_bytes: number(usage.working_set),
        available_bytes: usage.limit.and_then(|limit| number(limit.saturating_sub(usage.working_set))),
        usage_bytes: number(usage.usage),
        rss_bytes: number(usage.rss),
        page_faults: number(usage.page_faults),
        major_page_faults: number(usage.major_page_faults),
        psi: server.cgroups.pressure(path, PressureKind::Memory).map(psi),
    }
}

/// How a cgroup waits for disks.
pub(crate) fn io(server: &Server, path: &str) -> Option<cri::IoUsage> {
    let pressure = server.cgroups.pressure(path, PressureKind::Io)?;
    Some(cri::IoUsage { timestamp: now(), psi: Some(psi(pressure)) })
}

fn psi(pressure: Pressure) -> cri::PsiStats {
    // Totals are microseconds in the kernel and nanoseconds in CRI.
    let line = |line: PressureLine| cri::PsiData {
        total: line.total_microseconds * 1000,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    cri::PsiStats { full: Some(line(pressure.full)), some: Some(line(pressure.some)) }
}

/// A number that is there.
pub(crate) fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}
