//! A word about the node's resolv.conf, at the start, where pods can't be given all of it.

use orlop_agent_core::dns::{parse_resolv_conf, resolv_conf_excess};
use orlop_agent_core::ports::{EventType, ObjectRef};

use crate::shared::Shared;

/// Records an event about the node if its resolv.conf can't be read or holds too much.
pub(crate) async fn check_resolv_conf(shared: &Shared) {
    let path = shared.config.resolv_conf.clone();
    if path.as_os_str().is_empty() {
        return;
    }
    let named = path.display().to_string();
    let problem = match shared.config.pace.blocking(move || std::fs::read_to_string(path)).await {
        Ok(Ok(text)) => resolv_conf_excess(&named, &parse_resolv_conf(&text), &shared.config.cluster_domain),
        Ok(Err(error)) => Some(format!("open {named}: {error}")),
        Err(_) => None,
    };
    let Some(problem) = problem else { return };
    let name = shared.config.node_name.clone();
    let node = ObjectRef { kind: "Node".into(), namespace: String::new(), uid: name.clone(), name, field_path: None };
    shared.ports.events.record(node, EventType::Warning, "CheckLimitsForResolvConf", &problem);
}
