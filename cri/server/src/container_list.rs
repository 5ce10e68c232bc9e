//! `ListContainers` and its stream.

use std::sync::Arc;

use orlop_proto::cri;

use crate::container::Container;
use crate::sandbox_list::has_labels;
use crate::server::Server;

/// Containers that fit a filter.
pub(crate) fn list(server: &Server, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
    let filter = filter.unwrap_or_default();
    let fits = |container: &Arc<Container>| {
        !container.is_removing()
            && container.id.starts_with(&filter.id)
            && container.sandbox.id.starts_with(&filter.pod_sandbox_id)
            && filter.state.is_none_or(|wanted| wanted.state == container.phase().cri_state() as i32)
            && has_labels(&container.config.labels, &filter.label_selector)
    };
    let item = |container: Arc<Container>| {
        let record = container.record();
        cri::Container {
            id: container.id.clone(),
            pod_sandbox_id: container.sandbox.id.clone(),
            metadata: container.config.metadata.clone(),
            image: container.config.image.clone(),
            image_ref: record.image_ref,
            state: container.phase().cri_state().into(),
            created_at: record.created_at,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            image_id: record.image_id,
        }
    };
    server.store.containers().into_iter().filter(fits).map(item).collect()
}
