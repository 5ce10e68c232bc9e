//! The CSINode object: which CSI drivers are on this node, and by which name each knows the node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::client::{ApiClients, ApiError, REQUEST_DEADLINE, within};
use crate::node_source::NodeRecord;
use crate::retry::RetryDelay;

/// Annotation of the Node with a JSON map from driver to node id (k8s.io/kubernetes pkg/volume/csi/nodeinfomanager).
const NODE_ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";

/// A CSI driver that has registered on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsiNodeDriver {
    /// Driver name.
    pub name: String,
    /// How the driver calls this node.
    pub node_id: String,
    /// How many volumes it can have here; none is no limit.
    pub max_volumes: Option<i32>,
    /// Where the node is, as labels of the Node.
    pub topology: BTreeMap<String, String>,
}

/// Keeps CSINode, the annotation and the topology labels of the Node as the registered drivers are, until cancelled.
/// A driver that has not registered since the start keeps its entry: it registers again in a moment. `initialized`
/// becomes true with the first success, which the Ready condition waits for.
pub async fn keep_csi_node(
    clients: ApiClients,
    node_name: String,
    mut drivers: watch::Receiver<Vec<CsiNodeDriver>>,
    mut node: watch::Receiver<NodeRecord>,
    initialized: watch::Sender<bool>,
    cancel: CancellationToken,
) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut delay = RetryDelay::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let registered = drivers.borrow_and_update().clone();
        let uid = node.borrow_and_update().uid();
        seen.extend(registered.iter().map(|driver| driver.name.clone()));
        let gone: BTreeSet<String> =
            seen.iter().filter(|name| !registered.iter().any(|driver| driver.name == **name)).cloned().collect();
        let mut pause = None;
        if let Some(uid) = uid {
            match write(&clients, &node_name, &uid, &registered, &gone).await {
                Ok(()) => {
                    delay.reset();
                    initialized.send_replace(true);
                }
                Err(error) => {
                    warn!(%error, "the CSINode object could not be written");
                    pause = Some(delay.next_delay());
                }
            }
        }
        let known = node.borrow().uid();
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = drivers.changed() => if changed.is_err() { return },
            // Only another uid matters: the Node's status changes all the time.
            changed = node.wait_for(|record| record.uid() != known) => if changed.is_err() { return },
            () = sleep(pause), if pause.is_some() => {}
        }
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

async fn write(
    clients: &ApiClients,
    node_name: &str,
    node_uid: &str,
    drivers: &[CsiNodeDriver],
    gone: &BTreeSet<String>,
) -> Result<(), ApiError> {
    write_node(clients, node_name, drivers, gone).await?;
    let api: Api<CSINode> = Api::all(clients.requests.clone());
    let params = PostParams::default();
    let mut tries = 0;
    loop {
        tries += 1;
        let old = within("get CSINode", REQUEST_DEADLINE, api.get_opt(node_name)).await?;
        let new = merged(old.as_ref(), node_name, node_uid, drivers, gone);
        let result = match &old {
            Some(old) if *old == new => return Ok(()),
            Some(_) => within("update CSINode", REQUEST_DEADLINE, api.replace(node_name, &params, &new)).await,
            None => within("create CSINode", REQUEST_DEADLINE, api.create(&params, &new)).await,
        };
        match result {
            Err(error) if error.is_conflict() && tries < 5 => {}
            result => return result.map(drop),
        }
    }
}

/// Node ids as annotation and topology as labels of the Node.
async fn write_node(
    clients: &ApiClients,
    node_name: &str,
    drivers: &[CsiNodeDriver],
    gone: &BTreeSet<String>,
) -> Result<(), ApiError> {
    if drivers.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let api: Api<Node> = Api::all(clients.requests.clone());
    let node = within("get Node", REQUEST_DEADLINE, api.get(node_name)).await?;
    let annotations = node.metadata.annotations.unwrap_or_default();
    let labels = node.metadata.labels.unwrap_or_default();
    let old = annotations.get(NODE_ID_ANNOTATION).map(String::as_str).unwrap_or_default();
    let new = node_ids(old, drivers, gone);
    let missing: BTreeMap<&String, &String> = drivers
        .iter()
        .flat_map(|driver| &driver.topology)
        .filter(|(key, value)| labels.get(*key) != Some(*value))
        .collect();
    if new == old && missing.is_empty() {
        return Ok(());
    }
    let annotation = if new == "{}" { json!(null) } else { json!(new) };
    let patch = json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: annotation}, "labels": missing}});
    let params = PatchParams::default();
    let patch = Patch::Strategic(&patch);
    let sent = api.patch(node_name, &params, &patch);
    within("annotate Node with CSI node ids", REQUEST_DEADLINE, sent).await.map(drop)
}

/// The annotation's text with the drivers added and the gone ones removed.
fn node_ids(old: &str, drivers: &[CsiNodeDriver], gone: &BTreeSet<String>) -> String {
    let mut ids: BTreeMap<String, String> = serde_json::from_str(old).unwrap_or_default();
    ids.retain(|name, _| !gone.contains(name));
    ids.extend(drivers.iter().map(|driver| (driver.name.clone(), driver.node_id.clone())));
    serde_json::to_string(&ids).unwrap_or_default()
}

/// The CSINode to be written.
fn merged(
    old: Option<&CSINode>,
    node_name: &str,
    node_uid: &str,
    drivers: &[CsiNodeDriver],
    gone: &BTreeSet<String>,
) -> CSINode {
    let mut new = old
        .cloned()
        .unwrap_or_else(|| CSINode { metadata: Default::default(), spec: CSINodeSpec { drivers: Vec::new() } });
    new.metadata.name = Some(node_name.to_owned());
    new.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    }]);
    let list = &mut new.spec.drivers;
    list.retain(|driver| !gone.contains(&driver.name));
    for driver in drivers {
        let entry = CSINodeDriver {
            name: driver.name.clone(),
            node_id: driver.node_id.clone(),
            topology_keys: Some(driver.topology.keys().cloned().collect()),
            allocatable: driver.max_volumes.map(|count| VolumeNodeResources { count: Some(count) }),
        };
        match list.iter_mut().find(|known| known.name == driver.name) {
            Some(known) => {
                let keys = known.topology_keys.clone().unwrap_or_default();
                if known.node_id != entry.node_id
                    || Some(keys) != entry.topology_keys
                    || known.allocatable != entry.allocatable
                {
                    *known = entry;
                }
            }
            None => list.push(entry),
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, id: &str, max: Option<i32>) -> CsiNodeDriver {
        let topology = BTreeMap::from([(format!("topology.{name}/node"), id.to_owned())]);
        CsiNodeDriver { name: name.into(), node_id: id.into(), max_volumes: max, topology }
    }

    #[test]
    fn drivers_come_change_and_go_and_unknown_ones_stay() {
        let none = BTreeSet::new();
        let first = merged(None, "n", "u", &[driver("a", "1", None)], &none);
        assert_eq!(first.metadata.owner_references.as_ref().unwrap()[0].uid, "u");
        assert_eq!(first.spec.drivers[0].topology_keys.as_ref().unwrap(), &["topology.a/node"]);
        let same = merged(Some(&first), "n", "u", &[driver("a", "1", None)], &none);
        assert_eq!(same, first, "nothing to write");
        let restart = merged(Some(&first), "n", "u", &[], &none);
        assert_eq!(restart, first, "after a restart of the agent nobody has registered yet");
        let more = merged(Some(&first), "n", "u", &[driver("a", "2", Some(3)), driver("b", "1", None)], &none);
        let names: Vec<_> = more.spec.drivers.iter().map(|d| (d.name.as_str(), d.node_id.as_str())).collect();
        assert_eq!(names, [("a", "2"), ("b", "1")]);
        assert_eq!(more.spec.drivers[0].allocatable.as_ref().unwrap().count, Some(3));
        let gone = merged(Some(&more), "n", "u", &[driver("b", "1", None)], &BTreeSet::from(["a".to_owned()]));
        assert_eq!(gone.spec.drivers.len(), 1);
    }

    #[test]
    fn node_ids_are_a_json_map() {
        let none = BTreeSet::new();
        assert_eq!(node_ids("", &[driver("a", "1", None)], &none), r#"{"a":"1"}"#);
        assert_eq!(node_ids(r#"{"z":"9"}"#, &[driver("a", "1", None)], &none), r#"{"a":"1","z":"9"}"#);
        assert_eq!(node_ids(r#"{"z":"9"}"#, &[], &BTreeSet::from(["z".to_owned()])), "{}");
        assert_eq!(node_ids("garbage", &[driver("a", "1", None)], &none), r#"{"a":"1"}"#);
    }
}
