//! `ListPodSandbox` and its stream.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_proto::cri;

use crate::sandbox::Sandbox;
use crate::server::Server;

/// Sandboxes that fit a filter.
pub(crate) fn list(server: &Server, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let fits = |sandbox: &Arc<Sandbox>| {
        sandbox.id.starts_with(&filter.id)
            && filter.state.is_none_or(|wanted| wanted.state == sandbox.cri_state() as i32)
            && has_labels(&sandbox.config.labels, &filter.label_selector)
    };
    let item = |sandbox: Arc<Sandbox>| cri::PodSandbox {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: sandbox.cri_state().into(),
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.runtime_handler.clone(),
    };
    server.store.sandboxes().into_iter().filter(fits).map(item).collect()
}

/// Whether all wanted labels are there.
pub(crate) fn has_labels(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
