//! `PodSandboxStats`, `ListPodSandboxStats` and their stream.

use std::sync::Arc;
use std::time::Instant;

use orlop_cri_spec::sandbox;
use orlop_kernel::cgroup::MemoryUsage;
use orlop_kernel::network::{InterfaceCounters, interface_counters};
use orlop_proto::cri;

use crate::container_stats::{self, number};
use crate::error::RpcError;
use crate::sandbox::{DEFAULT_INTERFACE, Sandbox};
use crate::sandbox_list::has_labels;
use crate::server::{Server, now};

/// What one pod uses.
pub(crate) async fn one(
    server: Arc<Server>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, RpcError> {
    let sandbox = server.store.sandbox(&request.pod_sandbox_id)?;
    Ok(cri::PodSandboxStatsResponse { stats: Some(stats_of(&server, &sandbox).await) })
}

/// What all pods that fit a filter use.
pub(crate) async fn list(server: &Server, filter: Option<cri::PodSandboxStatsFilter>) -> Vec<cri::PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let fits = |sandbox: &Arc<Sandbox>| {
        sandbox.id.starts_with(&filter.id) && has_labels(&sandbox.config.labels, &filter.label_selector)
    };
    let sandboxes: Vec<Arc<Sandbox>> = server.store.sandboxes().into_iter().filter(fits).collect();
    futures::future::join_all(sandboxes.iter().map(|sandbox| stats_of(server, sandbox))).await
}

async fn stats_of(server: &Server, sandbox: &Arc<Sandbox>) -> cri::PodSandboxStats {
    let attributes = cri::PodSandboxAttributes {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
    };
    let mut linux = cri::LinuxPodSandboxStats::default();
    for container in server.store.shown_containers_of(&sandbox.id) {
        linux.containers.push(container_stats::stats_of(server, &container).await);
    }
    if sandbox.state().ready {
        let cgroups = cgroups_of(server, sandbox);
        linux.cpu = cpu(server, sandbox, &cgroups);
        linux.memory = memory(server, &cgroups);
        linux.network = network(sandbox);
        let processes: usize = cgroups.iter().map(|path| server.cgroups.processes(path).len()).sum();
        linux.process = Some(cri::ProcessUsage { timestamp: now(), process_count: number(processes as u64) });
        linux.io = cgroups.first().and_then(|path| container_stats::io(server, path));
    }
    cri::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), ..Default::default() }
}

/// The cgroup of the pod where it has one of its own, else those of pause and its containers.
pub(crate) fn cgroups_of(server: &Server, sandbox: &Sandbox) -> Vec<String> {
    if let Ok(Some(pod)) = sandbox::pod_cgroup(&sandbox.config, sandbox.cgroup_driver) {
        return vec![pod];
    }
    let pause = sandbox.cgroup(&sandbox.id).into_iter();
    pause.chain(server.store.containers_of(&sandbox.id).iter().filter_map(|container| container.cgroup())).collect()
}

fn cpu(server: &Server, sandbox: &Sandbox, cgroups: &[String]) -> Option<cri::CpuUsage> {
    let rate = |nanoseconds| sandbox.rate.next(Instant::now(), nanoseconds);
    if let [one] = cgroups {
        return container_stats::cpu(server, one, rate);
    }
    let nanoseconds = cgroups.iter().filter_map(|path| server.cgroups.cpu_time(path)).sum();
    Some(cri::CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: number(nanoseconds),
        usage_nano_cores: rate(nanoseconds).and_then(number),
        psi: None,
    })
}

fn memory(server: &Server, cgroups: &[String]) -> Option<cri::MemoryUsage> {
    let mut all = cgroups.iter().filter_map(|path| server.cgroups.memory_usage(path));
    let first = all.next()?;
    let sum = all.fold(first, |sum, next| MemoryUsage {
        usage: sum.usage + next.usage,
        working_set: sum.working_set + next.working_set,
        limit: None,
        rss: sum.rss + next.rss,
        page_faults: sum.page_faults + next.page_faults,
        major_page_faults: sum.major_page_faults + next.major_page_faults,
        ..sum
    });
    Some(container_stats::memory(server, cgroups.first()?, &sum))
}

/// Traffic of the pod's own network; a pod on the machine's network has none of its own.
fn network(sandbox: &Sandbox) -> Option<cri::NetworkUsage> {
    let usage = |interface: InterfaceCounters| cri::NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: number(interface.received.bytes),
        rx_errors: number(interface.received.errors),
        tx_bytes: number(interface.sent.bytes),
        tx_errors: number(interface.sent.errors),
    };
    let (main, others): (Vec<_>, Vec<_>) =
        interfaces(sandbox)?.into_iter().map(usage).partition(|interface| interface.name == DEFAULT_INTERFACE);
    Some(cri::NetworkUsage { timestamp: now(), default_interface: main.into_iter().next(), interfaces: others })
}

/// Interfaces of the pod's own network, without its loopback.
pub(crate) fn interfaces(sandbox: &Sandbox) -> Option<Vec<InterfaceCounters>> {
    sandbox.netns.as_ref()?;
    let mut interfaces = interface_counters(sandbox.pause_pid()?).ok()?;
    interfaces.retain(|interface| interface.name != "lo");
    Some(interfaces)
}
