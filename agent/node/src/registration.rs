//! Making the Node object, or bringing the one that is there up to date.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::agent::NodeConfig;

/// How long one request about the node may take.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Tells the attach-detach controller that it attaches volumes of this node.
const MANAGED_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// The addresses asked for by configuration, for cloud controllers.
const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";

/// Why a request about the node failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeRequestError {
    /// No answer in time.
    #[error("{what}: no answer within {} s", REQUEST_DEADLINE.as_secs())]
    Deadline {
        /// What was asked.
        what: &'static str,
    },
    /// Refused, or not reached.
    #[error("{what}: {}", describe(source))]
    Request {
        /// What was asked.
        what: &'static str,
        /// What the client or server said.
        #[source]
        source: kube::Error,
    },
}

impl NodeRequestError {
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }
}

/// What the server said, or why it was not reached, with all causes.
fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({} {})", status.message, status.code, status.reason);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Runs one request under the deadline.
pub(crate) async fn within<T>(
    what: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, NodeRequestError> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(result) => result.map_err(|source| NodeRequestError::Request { what, source }),
        Err(_) => Err(NodeRequestError::Deadline { what }),
    }
}

/// Creates the Node, or reconciles its default labels and annotations. Returns it as the server has it, and whether it is
/// new.
pub(crate) async fn register(
    api: &Api<Node>,
    config: &NodeConfig,
    status: NodeStatus,
) -> Result<(Node, bool), NodeRequestError> {
    let node = initial_node(config, status);
    let params = PostParams::default();
    match within("create Node", api.create(&params, &node)).await {
        Err(error) if error.code() == Some(409) => {}
        result => return result.map(|node| (node, true)),
    }
    let existing = within("get Node", api.get(&config.node_name)).await?;
    let Some(patch) = reconciliation(&existing, &node) else { return Ok((existing, false)) };
    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
    let patched =
        within("update labels and annotations of Node", api.patch(&config.node_name, &params, &patch)).await?;
    Ok((patched, false))
}

fn initial_node(config: &NodeConfig, status: NodeStatus) -> Node {
    let taints: Vec<Taint> = config.taints.iter().map(Taint::from).collect();
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(annotations(config)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
            taints: Some(taints).filter(|taints| !taints.is_empty()),
            unschedulable: config.unschedulable.then_some(true),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let architecture = &config.system.architecture;
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    labels.extend(config.labels.clone());
    labels
}

fn annotations(config: &NodeConfig) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(MANAGED_ATTACH.to_owned(), "true".to_owned())]);
    if !config.node_ips.is_empty() {
        let ips: Vec<String> = config.node_ips.iter().map(ToString::to_string).collect();
        annotations.insert(PROVIDED_IP.to_owned(), ips.join(","));
    }
    annotations
}

/// The patch that gives `existing` the labels and annotations of `wanted`; others stay. None where nothing is missing.
fn reconciliation(existing: &Node, wanted: &Node) -> Option<serde_json::Value> {
    type Pairs = Option<BTreeMap<String, String>>;
    let missing = |have: &Pairs, want: &Pairs| -> BTreeMap<String, String> {
        let want = want.clone().unwrap_or_default();
        want.into_iter().filter(|(key, value)| have.as_ref().and_then(|have| have.get(key)) != Some(value)).collect()
    };
    let labels = missing(&existing.metadata.labels, &wanted.metadata.labels);
    let annotations = missing(&existing.metadata.annotations, &wanted.metadata.annotations);
    (!labels.is_empty() || !annotations.is_empty())
        .then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_there_keeps_what_is_not_ours() {
        let config = NodeConfig {
            node_name: "n".into(),
            hostname: "h".into(),
            node_ips: vec!["10.0.0.1".parse().unwrap()],
            ..NodeConfig::default()
        };
        let wanted = initial_node(&config, NodeStatus::default());
        assert_eq!(wanted.metadata.annotations.as_ref().unwrap()[PROVIDED_IP], "10.0.0.1");
        assert_eq!(reconciliation(&wanted, &wanted), None);
        let mut old = wanted.clone();
        let labels = old.metadata.labels.as_mut().unwrap();
        labels.insert("mine".into(), "1".into());
        labels.insert("kubernetes.io/hostname".into(), "other".into());
        let patch = reconciliation(&old, &wanted).unwrap();
        assert_eq!(patch, json!({"metadata": {"labels": {"kubernetes.io/hostname": "h"}, "annotations": {}}}));
    }
}
