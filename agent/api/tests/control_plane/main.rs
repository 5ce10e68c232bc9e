//! Every part of the API client against a real kube-apiserver with the Node authorizer and NodeRestriction.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::storage::v1::CSINode;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use orlop_agent_api::ApiClients;
use orlop_agent_api::access::{AccessLives, ApiAccess};
use orlop_agent_api::csi_node::{CsiNodeDriver, keep_csi_node};
use orlop_agent_api::events::EventRecorder;
use orlop_agent_api::lease::renew_lease;
use orlop_agent_api::mirror::ApiMirrorPods;
use orlop_agent_api::node_source::{NodeRecord, follow_node};
use orlop_agent_api::objects::ApiObjects;
use orlop_agent_api::pod_source::follow_pods;
use orlop_agent_api::status::StatusWriter;
use orlop_agent_core::allowance::Rate;
use orlop_agent_core::ports::{
    Access, EventType, Events, MirrorPods, ObjectRef, Objects, PodSet, PortError, StatusSink, StatusUpdate, User,
};
use serde_json::{Value, json};
use support::ControlPlane;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NODE: &str = "node-1";
/// How long a change may take to be seen; in truth it takes milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// What every part of the test uses.
struct Stage {
    admin: kube::Client,
    node: ApiClients,
    pods: watch::Receiver<Arc<PodSet>>,
    record: watch::Receiver<NodeRecord>,
    cancel: CancellationToken,
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &from(value)).await.unwrap()
}

/// Waits until a question has an answer.
async fn soon<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, asking).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

fn pod(name: &str, extra: Value) -> Value {
    let mut spec = json!({"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

impl Stage {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn seen(&self, uid: &str) {
        let mut pods = self.pods.clone();
        let seen = pods.wait_for(|set| set.synced && set.pods.contains_key(uid));
        tokio::time::timeout(SOON, seen).await.expect("the pod is seen").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_speaks_with_a_real_api_server() {
    let mut plane = ControlPlane::start().await;
    let admin = plane.client("admin", &["system:masters"]).await.requests;
    let node = plane.client(&format!("system:node:{NODE}"), &["system:nodes"]).await;
    let cancel = CancellationToken::new();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
    create(&accounts, json!({"metadata": {"name": "default"}})).await;
    let nodes: Api<Node> = Api::all(node.requests.clone());
    create(&nodes, json!({"metadata": {"name": NODE}})).await;
    let pods = follow_pods(&node, NODE, cancel.clone());
    let record = follow_node(&node, NODE, cancel.clone());
    let stage = Stage { admin, node, pods, record, cancel: cancel.clone() };
    let mut known = stage.record.clone();
    tokio::time::timeout(SOON, known.wait_for(|record| record.node.is_some())).await.expect("node seen").unwrap();

    statuses(&stage).await;
    objects(&stage).await;
    tokens(&stage).await;
    mirrors(&stage).await;
    events(&stage).await;
    access(&stage).await;
    lease(&stage).await;
    csi_node(&stage).await;
    absence(&stage, &mut plane).await;
    cancel.cancel();
}

fn update(pod: &Pod, status: Value, finished: bool) -> StatusUpdate {
    let name = pod.metadata.name.clone().unwrap();
    StatusUpdate { namespace: "default".into(), name, uid: uid(pod), status: from(status), finished }
}

async fn statuses(stage: &Stage) {
    let (writer, _task) = StatusWriter::start(stage.node.clone(), stage.pods.clone(), stage.cancel.clone());
    let api = stage.pods();
    let made = create(&api, pod("status", json!({"terminationGracePeriodSeconds": 30}))).await;
    stage.seen(&uid(&made)).await;
    let running = json!({
        "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "192.0.2.1",
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "x", "ready": false, "restartCount": 0}],
    });
    writer.publish(update(&made, json!({"phase": "Pending"}), false));
    writer.publish(update(&made, running, false));
    let phase = |want: &'static str| {
        let api = api.clone();
        move || {
            let api = api.clone();
            async move {
                api.get("status").await.ok().filter(|pod| pod.status.as_ref().unwrap().phase.as_deref() == Some(want))
            }
        }
    };
    let written = soon("running", phase("Running")).await;
    let version = written.metadata.resource_version.clone();
    // The same again is no write; another address replaces the first; a condition loses its reason.
    let ready = json!({
        "phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}], "hostIP": "192.0.2.1",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "x", "ready": true, "restartCount": 0}],
    });
    let gate = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}});
    api.patch_status("status", &PatchParams::default(), &Patch::Strategic(gate)).await.unwrap();
    writer.publish(update(&made, ready.clone(), false));
    let changed = soon("ready", || async {
        let pod = api.get("status").await.ok()?;
        let status = pod.status.clone().unwrap();
        (status.pod_ip.as_deref() == Some("10.0.0.2")).then_some(pod)
    })
    .await;
    assert_ne!(changed.metadata.resource_version, version);
    let status = changed.status.clone().unwrap();
    assert_eq!(status.pod_ips.as_ref().unwrap().len(), 1, "{:?}", status.pod_ips);
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"), "the server's field stays");
    let conditions: BTreeMap<String, Option<String>> =
        status.conditions.unwrap().into_iter().map(|condition| (condition.type_, condition.reason)).collect();
    assert_eq!(conditions.get("Ready"), Some(&None), "{conditions:?}");
    assert!(conditions.contains_key("example.com/gate"));
    for _ in 0..5 {
        writer.publish(update(&made, ready.clone(), false));
    }
    // Somebody overwrites it: it is written again.
    let wrong = json!({"status": {"phase": "Pending"}});
    api.patch_status("status", &PatchParams::default(), &Patch::Strategic(wrong)).await.unwrap();
    soon("healed", phase("Running")).await;
    // Finished before the deletion is asked for: deleted as soon as it is.
    writer.publish(update(&made, json!({"phase": "Succeeded"}), true));
    soon("succeeded", phase("Succeeded")).await;
    api.delete("status", &DeleteParams::default()).await.unwrap();
    soon("deleted", || async { api.get_opt("status").await.unwrap().is_none().then_some(()) }).await;
    // Another pod of that name is not touched by a late status of the first.
    let second = create(&api, pod("status", json!({}))).await;
    writer.publish(update(&made, json!({"phase": "Failed"}), true));
    writer.publish(update(&second, json!({"phase": "Running"}), false));
    soon("the second runs", phase("Running")).await;
    api.delete("status", &DeleteParams::default().grace_period(0)).await.unwrap();
}

async fn objects(stage: &Stage) {
    let objects = ApiObjects::start(stage.node.clone(), stage.pods.clone(), stage.cancel.clone());
    let mut changes = objects.changes();
    let maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(stage.admin.clone(), "default");
    create(&secrets, json!({"metadata": {"name": "foreign"}})).await;
    let refused = objects.secret("default", "foreign").await.unwrap_err();
    assert!(matches!(&refused, PortError::Unavailable { message, .. } if message.contains("403")), "{refused}");
    let volumes = json!([
        {"name": "a", "configMap": {"name": "map"}}, {"name": "b", "secret": {"secretName": "secret"}},
        {"name": "c", "configMap": {"name": "fixed"}},
    ]);
    let made = create(&stage.pods(), pod("reader", json!({"volumes": volumes}))).await;
    stage.seen(&uid(&made)).await;
    let absent = soon("the authorizer knows the pod", || async {
        match objects.config_map("default", "map").await {
            Err(PortError::NotFound { name, .. }) => Some(name),
            _ => None,
        }
    })
    .await;
    assert_eq!(absent, "default/map");
    create(&maps, json!({"metadata": {"name": "map"}, "data": {"k": "1"}})).await;
    create(&secrets, json!({"metadata": {"name": "secret"}, "stringData": {"k": "1"}})).await;
    create(&maps, json!({"metadata": {"name": "fixed"}, "immutable": true, "data": {"k": "1"}})).await;
    let told = tokio::time::timeout(SOON, changes.next()).await.expect("told of the creation");
    assert_eq!(told, ("ConfigMap".to_owned(), "default".to_owned(), "map".to_owned()));
    let value = objects.config_map("default", "map").await.unwrap().data.clone().unwrap();
    assert_eq!(value["k"], "1");
    let fixed = soon("fixed", || async { objects.config_map("default", "fixed").await.ok() }).await;
    assert_eq!(fixed.immutable, Some(true));
    assert_eq!(
        objects.config_map("default", "fixed").await.unwrap().metadata.uid,
        fixed.metadata.uid,
        "without a watch"
    );
    soon("secret", || async { objects.secret("default", "secret").await.ok() }).await;
    let patch = json!({"stringData": {"k": "2"}});
    secrets.patch("secret", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    let told = tokio::time::timeout(SOON, async {
        loop {
            let (kind, _, name) = changes.next().await;
            if kind == "Secret" {
                return name;
            }
        }
    });
    assert_eq!(told.await.expect("told of the change"), "secret");
    let secret = objects.secret("default", "secret").await.unwrap();
    assert_eq!(secret.data.as_ref().unwrap()["k"].0, b"2");
    assert!(matches!(
        objects.claim("default", "none").await,
        Err(PortError::NotFound { .. } | PortError::Unavailable { .. })
    ));
    assert!(matches!(objects.csi_driver("none").await, Err(PortError::NotFound { .. })));
    let services = objects.services("kube-system").await.unwrap();
    assert!(services.iter().any(|service| service.metadata.name.as_deref() == Some("kubernetes")), "{services:?}");
}

async fn tokens(stage: &Stage) {
    let objects = ApiObjects::start(stage.node.clone(), stage.pods.clone(), stage.cancel.clone());
    let made = create(&stage.pods(), pod("tokens", json!({"serviceAccountName": "default"}))).await;
    stage.seen(&uid(&made)).await;
    let token = soon("token", || async { objects.token(&made, "", 3600).await.ok() }).await;
    assert_eq!(objects.token(&made, "", 3600).await.unwrap(), token, "kept");
    assert_ne!(objects.token(&made, "", 7200).await.unwrap(), token, "another life is another token");
    let access = ApiAccess::new(stage.node.clone(), NODE, AccessLives::default());
    let user = access.authenticate(&token).await.unwrap().expect("the token is good");
    assert_eq!(user.name, "system:serviceaccount:default:default");
    assert_eq!(access.authenticate("nonsense").await.unwrap(), None);
    let mut stranger = made.clone();
    stranger.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
    assert!(objects.token(&stranger, "", 3600).await.is_err(), "bound to a pod that is not there");
}

async fn mirrors(stage: &Stage) {
    let mirrors = ApiMirrorPods::new(stage.node.clone(), NODE, stage.record.clone());
    let mut mirror: Pod = from(pod("static-node-1", json!({})));
    mirror.metadata.annotations = Some(BTreeMap::from([("kubernetes.io/config.mirror".to_owned(), "hash".to_owned())]));
    mirrors.create(&mirror).await.unwrap();
    mirrors.create(&mirror).await.unwrap();
    let made = stage.pods().get("static-node-1").await.unwrap();
    assert_eq!(made.metadata.owner_references.as_ref().unwrap()[0].kind, "Node");
    mirrors.delete("default", "static-node-1", "another-uid").await.unwrap();
    assert!(stage.pods().get_opt("static-node-1").await.unwrap().is_some(), "not of that uid");
    mirrors.delete("default", "static-node-1", &uid(&made)).await.unwrap();
    mirrors.delete("default", "static-node-1", &uid(&made)).await.unwrap();
    assert!(stage.pods().get_opt("static-node-1").await.unwrap().is_none());
}

async fn events(stage: &Stage) {
    let recorder = EventRecorder::start(stage.node.clone(), NODE, Rate::EVENTS, stage.cancel.clone());
    let object = ObjectRef {
        kind: "Pod".into(),
        namespace: "default".into(),
        name: "reader".into(),
        uid: "u".into(),
        field_path: Some("spec.containers{c}".into()),
    };
    for _ in 0..3 {
        recorder.record(object.clone(), EventType::Warning, "BackOff", "again");
    }
    let node = ObjectRef {
        kind: "Node".into(),
        name: NODE.into(),
        uid: NODE.into(),
        namespace: String::new(),
        field_path: None,
    };
    recorder.record(node, EventType::Normal, "Starting", "Starting kubelet.");
    let api: Api<Event> = Api::namespaced(stage.admin.clone(), "default");
    let find = |reason: &'static str| {
        let api = api.clone();
        async move {
            let list = api.list(&ListParams::default()).await.unwrap();
            list.items.into_iter().find(|event| event.reason.as_deref() == Some(reason))
        }
    };
    let event = soon("counted", || async { find("BackOff").await.filter(|event| event.count == Some(3)) }).await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.involved_object.field_path.as_deref(), Some("spec.containers{c}"));
    assert_eq!(event.source.unwrap().host.as_deref(), Some(NODE));
    let event = soon("of the node", || find("Starting")).await;
    assert_eq!(event.involved_object.kind.as_deref(), Some("Node"));
}

async fn access(stage: &Stage) {
    let access = ApiAccess::new(stage.node.clone(), NODE, AccessLives::default());
    let user = |name: &str, group: &str| User { name: name.into(), uid: String::new(), groups: vec![group.into()] };
    let admin = user("admin", "system:masters");
    assert!(access.authorize(&admin, "create", "proxy").await.unwrap());
    assert!(!access.authorize(&user("nobody", "system:authenticated"), "get", "metrics").await.unwrap());
}

async fn lease(stage: &Stage) {
    let api: Api<Lease> = Api::namespaced(stage.admin.clone(), "kube-node-lease");
    soon("namespace", || async {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.admin.clone());
        namespaces.get_opt("kube-node-lease").await.unwrap()
    })
    .await;
    let cancel = stage.cancel.child_token();
    let task = tokio::spawn(renew_lease(stage.node.clone(), NODE.into(), 1, stage.record.clone(), cancel.clone()));
    let first = soon("lease", || async { api.get_opt(NODE).await.unwrap() }).await;
    assert_eq!(first.spec.as_ref().unwrap().holder_identity.as_deref(), Some(NODE));
    assert_eq!(first.metadata.owner_references.as_ref().unwrap()[0].kind, "Node");
    let renewed = |lease: &Lease| lease.spec.as_ref().unwrap().renew_time.clone();
    soon("renewed", || async { api.get_opt(NODE).await.unwrap().filter(|lease| renewed(lease) > renewed(&first)) })
        .await;
    api.delete(NODE, &DeleteParams::default()).await.unwrap();
    soon("made anew", || async { api.get_opt(NODE).await.unwrap() }).await;
    cancel.cancel();
    task.await.unwrap();
}

async fn csi_node(stage: &Stage) {
    let (drivers, receiver) = watch::channel(Vec::new());
    let (initialized, mut ready) = watch::channel(false);
    let cancel = stage.cancel.child_token();
    let (clients, record) = (stage.node.clone(), stage.record.clone());
    let task = tokio::spawn(keep_csi_node(clients, NODE.into(), receiver, record, initialized, cancel.clone()));
    tokio::time::timeout(SOON, ready.wait_for(|ready| *ready)).await.expect("initialised").unwrap();
    let api: Api<CSINode> = Api::all(stage.admin.clone());
    assert!(api.get(NODE).await.unwrap().spec.drivers.is_empty());
    let topology = BTreeMap::from([("example.com/node".to_owned(), NODE.to_owned())]);
    let driver = CsiNodeDriver { name: "csi.example.com".into(), node_id: "id".into(), max_volumes: Some(7), topology };
    drivers.send_replace(vec![driver]);
    let with = soon("driver", || async { api.get(NODE).await.ok().filter(|node| !node.spec.drivers.is_empty()) }).await;
    assert_eq!(with.spec.drivers[0].topology_keys.as_ref().unwrap(), &["example.com/node"]);
    let nodes: Api<Node> = Api::all(stage.admin.clone());
    let node = nodes.get(NODE).await.unwrap();
    assert_eq!(node.metadata.annotations.unwrap()["csi.volume.kubernetes.io/nodeid"], r#"{"csi.example.com":"id"}"#);
    assert_eq!(node.metadata.labels.unwrap()["example.com/node"], NODE);
    drivers.send_replace(Vec::new());
    soon("gone", || async { api.get(NODE).await.ok().filter(|node| node.spec.drivers.is_empty()) }).await;
    cancel.cancel();
    task.await.unwrap();
}

/// The API server goes away and comes back: what is known stays, what was missed is made up for.
async fn absence(stage: &Stage, plane: &mut ControlPlane) {
    let (writer, _task) = StatusWriter::start(stage.node.clone(), stage.pods.clone(), stage.cancel.clone());
    let objects = ApiObjects::start(stage.node.clone(), stage.pods.clone(), stage.cancel.clone());
    let made = create(&stage.pods(), pod("survivor", json!({}))).await;
    stage.seen(&uid(&made)).await;
    objects.config_map("default", "map").await.unwrap();
    plane.stop_api();
    writer.publish(update(&made, json!({"phase": "Running"}), false));
    assert!(objects.config_map("default", "map").await.is_ok(), "known objects stay known");
    assert!(stage.pods.borrow().pods.contains_key(&uid(&made)));
    plane.start_api().await;
    soon("the status arrives", || async {
        let pod = stage.pods().get("survivor").await.ok()?;
        (pod.status?.phase.as_deref() == Some("Running")).then_some(())
    })
    .await;
    let late = create(&stage.pods(), pod("late", json!({}))).await;
    stage.seen(&uid(&late)).await;
}
