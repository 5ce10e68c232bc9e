//! The table of nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::column::{AGE, Layout, NAME, age, column, flag, name, text_or};
use crate::object;

/// Prefix of labels that name a role.
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
/// Label whose value names a role.
const ROLE: &str = "kubernetes.io/role";

/// Nodes.
pub(super) static LAYOUT: Layout = Layout {
    columns: &[
        NAME,
        column("Status", "Whether the node is ready and takes new pods."),
        column("Roles", "Roles that its labels name."),
        AGE,
        column("Version", "Version that the node's agent reports."),
        column("Internal-IP", "First address for use inside the cluster.").wide(),
        column("External-IP", "First address for use from outside.").wide(),
        column("OS-Image", "Operating system that the node reports.").wide(),
        column("Kernel-Version", "Kernel that the node reports, with its architecture.").wide(),
        column("Container-Runtime", "Container runtime that the node reports, with its version.").wide(),
    ],
    cells,
};

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |key: &str| text_or(node, &format!("/status/nodeInfo/{key}"), "<unknown>");
    let mut kernel = info("kernelVersion");
    let architecture = object::text(node, "/status/nodeInfo/architecture");
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    vec![
        name(node),
        json!(status(node)),
        json!(roles(node)),
        age(node, now),
        json!(object::text(node, "/status/nodeInfo/kubeletVersion")),
        json!(address(node, "InternalIP")),
        json!(address(node, "ExternalIP")),
        json!(info("osImage")),
        json!(kernel),
        json!(info("containerRuntimeVersion")),
    ]
}

fn status(node: &Value) -> String {
    let ready =
        object::items(node, "/status/conditions").iter().rfind(|condition| object::text(condition, "/type") == "Ready");
    let mut status = match ready {
        Some(condition) if object::text(condition, "/status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if flag(node, "/spec/unschedulable", false) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            None if key == ROLE => value.as_str(),
            found => found,
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = object::items(node, "/status/addresses").iter().find(|address| object::text(address, "/type") == kind);
    found.map_or("<none>", |address| object::text(address, "/address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_a_row() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "False"}],
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1", "kernelVersion": "6.1", "architecture": "amd64"},
            },
        });
        let expected = json!([
            "n",
            "NotReady,SchedulingDisabled",
            "edge,worker",
            "<unknown>",
            "v1",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "6.1 (amd64)",
            "<unknown>"
        ]);
        assert_eq!(json!(cells(&node, Timestamp::UNIX_EPOCH)), expected);
    }
}
