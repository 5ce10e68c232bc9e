//! Resources in CRI.

use orlop_agent_core::resources::LinuxResources;
use orlop_proto::cri;

pub(super) fn resources(from: &LinuxResources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: from.cpu_period_us,
        cpu_quota: from.cpu_quota_us,
        cpu_shares: from.cpu_shares,
        memory_limit_in_bytes: from.memory_bytes,
        oom_score_adj: from.oom_score_adj,
        hugepage_limits: from
            .hugepages
            .iter()
            .map(|(size, limit)| cri::HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: from.unified.clone().into_iter().collect(),
        ..Default::default()
    }
}
