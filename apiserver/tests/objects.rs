//! The API over HTTP: objects, lists, watches, patches, deletion, rights.

#[path = "support/server.rs"]
mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::{Server, Watch};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}})
}

fn node() -> Value {
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

async fn server() -> Server {
    Server::start(BTreeMap::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_live_and_conflict() {
    let server = server().await;
    let (code, made) = server.post(MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "1"}})).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((made["kind"].as_str(), made["apiVersion"].as_str()), (Some("ConfigMap"), Some("v1")));
    let (code, error) = server.post(MAPS, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!((code, error["message"].as_str()), (409, Some("configmaps \"a\" already exists")));
    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    assert_eq!(server.put(&format!("{MAPS}/a"), &changed).await.0, 200);
    changed["data"]["k"] = json!("3");
    let (code, error) = server.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!(code, 409, "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    let (code, dry) = server
        .call(
            &server.admin,
            "POST",
            &format!("{MAPS}?dryRun=All"),
            "application/json",
            Some(&json!({"metadata": {"generateName": "g-"}})),
        )
        .await;
    assert_eq!(code, 201);
    assert!(dry["metadata"]["name"].as_str().unwrap().starts_with("g-"));
    let (_, list) = server.get(MAPS).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "the certificate and ours");
    let (code, status) = server.delete(&format!("{MAPS}/a")).await;
    assert_eq!((code, status["status"].as_str()), (200, Some("Success")));
    let (code, error) = server.get(&format!("{MAPS}/a")).await;
    assert_eq!((code, error["message"].as_str()), (404, Some("configmaps \"a\" not found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_filled_in_bound_and_goes_with_grace() {
    let server = server().await;
    let (_, made) = server.post(PODS, &pod("p")).await;
    assert_eq!(made["spec"]["restartPolicy"], "Always");
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert!(made["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    server
        .wait_for(&format!("{PODS}/p"), "no node yet", |_, pod| {
            pod["status"]["conditions"][0]["reason"] == "Unschedulable"
        })
        .await;
    assert_eq!(server.call(&server.node, "POST", "/api/v1/nodes", "application/json", Some(&node())).await.0, 201);
    server.wait_for(&format!("{PODS}/p"), "bound", |_, pod| pod["spec"]["nodeName"] == "n1").await;
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, "spec": {"nodeName": "other"}});
    let (code, patched) = server
        .call(
            &server.node,
            "PATCH",
            &format!("{PODS}/p/status"),
            "application/strategic-merge-patch+json",
            Some(&status),
        )
        .await;
    assert_eq!((code, patched["spec"]["nodeName"].as_str()), (200, Some("n1")), "{patched}");
    assert_eq!(patched["status"]["conditions"].as_array().unwrap().len(), 2, "conditions are merged by type");
    let (_, marked) = server.delete(&format!("{PODS}/p")).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(server.get(&format!("{PODS}/p")).await.0, 200);
    assert_eq!(server.call(&server.node, "DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), "", None).await.0, 200);
    assert_eq!(server.get(&format!("{PODS}/p")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_pods_are_refused_by_field() {
    let server = server().await;
    let (code, error) =
        server.post(PODS, &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"image": "x"}]}})).await;
    assert_eq!(
        (code, error["message"].as_str()),
        (422, Some("Pod \"p\" is invalid: spec.containers[0].name: Required value"))
    );
    let unknown =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x", "imag": "y"}]}});
    let (code, error) = server.post(&format!("{PODS}?fieldValidation=Strict"), &unknown).await;
    assert_eq!(code, 400);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .ends_with("strict decoding error: unknown field \"spec.containers[0].imag\""),
        "{error}"
    );
    let answer = server
        .admin
        .post(format!("{}{PODS}", server.url))
        .header("content-type", "application/json")
        .body(unknown.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["warning"], "299 - \"unknown field \\\"spec.containers[0].imag\\\"\"");
    let large = json!({"metadata": {"name": "l"}, "data": {"k": "x".repeat(4 << 20)}});
    assert_eq!(server.post(MAPS, &large).await.0, 413);
    let (code, error) = server
        .patch(
            &format!("{PODS}/p"),
            "strategic-merge-patch",
            &json!({"spec": {"containers": [{"name": "c", "command": ["x"]}]}}),
        )
        .await;
    assert_eq!(code, 422);
    assert!(
        error["message"].as_str().unwrap().contains("spec: Forbidden: pod updates may not change fields other than")
    );
    let (code, _) = server
        .call(&server.admin, "PATCH", &format!("{PODS}/p"), "application/apply-patch+yaml", Some(&json!({})))
        .await;
    assert_eq!(code, 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_chunked_and_selected() {
    let server = server().await;
    for name in ["a", "b", "c", "d"] {
        server.post(PODS, &pod(name)).await;
    }
    let (_, first) = server.get(&format!("{PODS}?limit=3")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    server.delete(&format!("{PODS}/d")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = server.get(&format!("{PODS}?limit=3&continue={token}")).await;
    assert_eq!(second["items"][0]["metadata"]["name"], "d", "a continued list shows the past");
    let (_, selected) =
        server.get(&format!("{PODS}?labelSelector=app%20in%20(a,b)&fieldSelector=metadata.name!=a")).await;
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.get(&format!("{PODS}?fieldSelector=spec.foo=1")).await.0, 400);
    assert_eq!(server.get(&format!("{PODS}?continue=x")).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_show_every_change_once() {
    let server = server().await;
    server.post(MAPS, &json!({"metadata": {"name": "a", "labels": {"x": "1"}}})).await;
    let (_, list) = server.get(MAPS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = Watch::open(&server, &format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    let mut labelled = Watch::open(&server, &format!("{MAPS}?watch=1&labelSelector=x=1")).await;
    let first = labelled.next().await.unwrap();
    assert_eq!((first["type"].as_str(), first["object"]["kind"].as_str()), (Some("ADDED"), Some("ConfigMap")));
    server.patch(&format!("{MAPS}/a"), "merge-patch", &json!({"metadata": {"labels": {"x": "2"}}})).await;
    server.delete(&format!("{MAPS}/a")).await;
    assert_eq!(all.next().await.unwrap()["type"], "MODIFIED");
    assert_eq!(all.next().await.unwrap()["type"], "DELETED");
    assert_eq!(labelled.next().await.unwrap()["type"], "DELETED", "it left the selector's view");
    let mut initial = Watch::open(
        &server,
        &format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"),
    )
    .await;
    assert_eq!(initial.next().await.unwrap()["type"], "ADDED");
    let mark = initial.next().await.unwrap();
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_objects_and_tells_watches_to_list_again() {
    let server = server().await;
    server.post(MAPS, &json!({"metadata": {"name": "a"}})).await;
    let (_, list) = server.get(MAPS).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    let server = Server::start_in(server.stop().await, BTreeMap::new()).await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 200);
    let mut watch = Watch::open(&server, &format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    let told = watch.next().await.unwrap();
    assert_eq!((told["type"].as_str(), told["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert!(watch.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_owners_and_namespaces() {
    let server = server().await;
    let (_, owner) = server.post(MAPS, &json!({"metadata": {"name": "owner", "finalizers": ["a.b/c"]}})).await;
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]});
    server.post(MAPS, &json!({"metadata": {"name": "child", "ownerReferences": [reference]}})).await;
    let (_, marked) = server.delete(&format!("{MAPS}/owner")).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    server
        .patch(&format!("{MAPS}/owner"), "json-patch", &json!([{"op": "remove", "path": "/metadata/finalizers"}]))
        .await;
    assert_eq!(server.get(&format!("{MAPS}/owner")).await.0, 404);
    server.wait_for(&format!("{MAPS}/child"), "collected", |code, _| code == 404).await;

    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "t"}})).await;
    assert_eq!(server.get("/api/v1/namespaces/t/serviceaccounts/default").await.0, 200);
    assert_eq!(server.post("/api/v1/namespaces/t/pods", &pod("p")).await.0, 201);
    server.delete("/api/v1/namespaces/t").await;
    server.wait_for("/api/v1/namespaces/t", "gone", |code, _| code == 404).await;
    let (code, error) = server.post("/api/v1/namespaces/t/pods", &pod("p")).await;
    assert_eq!((code, error["message"].as_str()), (404, Some("namespaces \"t\" not found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_what() {
    let server = server().await;
    let as_node = async |method: &str, path: &str, body: Option<Value>| {
        server.call(&server.node, method, path, "application/json", body.as_ref()).await
    };
    assert_eq!(server.call(&server.nobody, "GET", "/healthz", "", None).await.0, 200);
    let (code, error) = server.call(&server.nobody, "GET", PODS, "", None).await;
    assert_eq!((code, error["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(as_node("POST", "/api/v1/nodes", Some(node())).await.0, 201);
    let mut other = node();
    other["metadata"]["name"] = json!("n2");
    assert_eq!(as_node("POST", "/api/v1/nodes", Some(other)).await.0, 403);
    assert_eq!(as_node("DELETE", "/api/v1/nodes/n1", None).await.0, 403);
    assert_eq!(as_node("GET", "/api/v1/pods", None).await.0, 403);
    assert_eq!(as_node("GET", "/api/v1/pods?fieldSelector=spec.nodeName=n1", None).await.0, 200);
    let secrets = "/api/v1/namespaces/default/secrets";
    server.post(secrets, &json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}})).await;
    assert_eq!(as_node("GET", &format!("{secrets}/s"), None).await.0, 403);
    let mut user = pod("user");
    user["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]);
    let (_, user) = server.post(PODS, &user).await;
    server.wait_for(&format!("{PODS}/user"), "bound", |_, pod| pod["spec"]["nodeName"] == "n1").await;
    let (code, secret) = as_node("GET", &format!("{secrets}/s"), None).await;
    assert_eq!((code, secret["data"]["k"].as_str()), (200, Some("dg==")));
    let bound = json!({"spec": {"audiences": [], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "user", "uid": user["metadata"]["uid"]}}});
    let (code, token) = as_node("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", Some(bound)).await;
    assert_eq!(code, 201, "{token}");
    let token = token["status"]["token"].as_str().unwrap().to_string();
    let review = json!({"spec": {"token": token}});
    let (_, reviewed) = as_node("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Some(review.clone())).await;
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(reviewed["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["user"]));
    let unbound =
        as_node("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", Some(json!({"spec": {}}))).await;
    assert_eq!(unbound.0, 403, "a node gets no token that is bound to nothing");
    let as_account = server.nobody.get(format!("{}{PODS}", server.url)).bearer_auth(&token).send().await.unwrap();
    assert_eq!(as_account.status().as_u16(), 403);
    server.delete(&format!("{PODS}/user?gracePeriodSeconds=0")).await;
    let (_, reviewed) = as_node("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Some(review)).await;
    assert_ne!(reviewed["status"]["authenticated"], true, "the pod of the token is gone");
}
