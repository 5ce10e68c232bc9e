//! RuntimeClasses: handlers that are there and that are not, overhead, and the objects themselves.

use orlop_tests::case::{Case, image};
use orlop_tests::world::until;
use serde_json::{Value, json};

const PATH: &str = "/apis/node.k8s.io/v1/runtimeclasses";

/// A class of this case, which has no namespace; it goes with this value.
struct Class<'c> {
    case: &'c Case<'c>,
    name: String,
}

impl<'c> Class<'c> {
    fn make(case: &'c Case<'c>, handler: &str, more: Value) -> Class<'c> {
        let name = format!("class-{}", case.namespace);
        let mut class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler});
        for (field, value) in more.as_object().unwrap() {
            class[field] = value.clone();
        }
        case.cluster.api.must("POST", PATH, Some(&class));
        Class { case, name }
    }

    fn path(&self) -> String {
        format!("{PATH}/{}", self.name)
    }
}

impl Drop for Class<'_> {
    fn drop(&mut self) {
        let _ = self.case.cluster.api.send("DELETE", &self.path(), None);
    }
}

fn pod_of(name: &str) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"runtimeClassName": name, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": image("busybox"), "command": ["sleep", "1000"]}]}})
}

/// Makes a pod of a class that isn't there: it is refused, by the API or by the node.
fn is_refused(case: &Case<'_>, class: &str) {
    let (code, told) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&pod_of(class))).unwrap();
    assert_eq!(code, 403, "{told}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains(class) && message.contains("RuntimeClass"), "{message}");
}

/// One that isn't there.
pub fn unknown(case: &Case<'_>) {
    is_refused(case, "there-is-none");
}

/// One whose handler the node does not have.
pub fn unconfigured_handler(case: &Case<'_>) {
    let class = Class::make(case, "no-such-handler", json!({}));
    case.make("pods", &pod_of(&class.name));
    case.until_event("p", "FailedCreatePodSandBox", "no-such-handler");
    assert_eq!(case.pod("p")["status"]["phase"], "Pending");
}

/// One whose handler it has.
pub fn configured_handler(case: &Case<'_>) {
    let class = Class::make(case, "orlop", json!({}));
    case.make("pods", &pod_of(&class.name));
    case.until_ready("p");
    let sandbox = case.sandbox("p");
    assert_eq!(sandbox["status"]["runtimeHandler"], "orlop", "{sandbox}");
}

/// Without overhead the pod has none.
pub fn without_overhead(case: &Case<'_>) {
    let class = Class::make(case, "orlop", json!({}));
    case.make("pods", &pod_of(&class.name));
    assert_eq!(case.until_ready("p")["spec"]["overhead"], Value::Null);
}

/// With it, the pod's cgroup has more than its containers ask for.
pub fn with_overhead(case: &Case<'_>) {
    let class = Class::make(case, "orlop", json!({"overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}}}));
    let mut pod = pod_of(&class.name);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "100m", "memory": "15Mi"}});
    case.make("pods", &pod);
    let pod = case.until_ready("p");
    assert_eq!(pod["spec"]["overhead"], json!({"cpu": "10m", "memory": "1Mi"}));
    let folder = case.cgroup("memory", "p");
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok().map(|text| text.trim().to_string());
    let limit = read("memory.limit_in_bytes").or_else(|| read("memory.max"));
    assert_eq!(limit.as_deref(), Some("16777216"), "{}", folder.display());
}

/// One that was there and is deleted.
pub fn deleted(case: &Case<'_>) {
    let class = Class::make(case, "orlop", json!({}));
    case.cluster.api.must("DELETE", &class.path(), None);
    until("it is gone", || case.cluster.api.find(&class.path()).is_none().then_some(()));
    // kube-apiserver hears of the end a moment later.
    until("it is refused", || {
        let (code, _) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&pod_of(&class.name))).unwrap();
        if code == 201 {
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
            case.cluster.api.must("DELETE", &case.path("pods", "p"), Some(&options));
            return None;
        }
        Some(())
    });
    is_refused(case, &class.name);
}

/// The API of the objects: found in discovery, made, read, listed, watched, patched, replaced, deleted by one and by many.
pub fn objects(case: &Case<'_>) {
    let api = &case.cluster.api;
    let groups = api.get("/apis");
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "node.k8s.io"));
    let versions = api.get("/apis/node.k8s.io");
    assert!(versions["versions"].as_array().unwrap().iter().any(|one| one["version"] == "v1"));
    let resources = api.get("/apis/node.k8s.io/v1");
    assert!(resources["resources"].as_array().unwrap().iter().any(|one| one["name"] == "runtimeclasses"));

    let label = format!("of={}", case.namespace);
    let name = |number: u32| format!("{}-{number}", case.namespace);
    let class = |number: u32| {
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "orlop",
            "metadata": {"name": name(number), "labels": {"of": case.namespace}}})
    };
    for number in 1..=3 {
        api.must("POST", PATH, Some(&class(number)));
    }
    let path = |number: u32| format!("{PATH}/{}", name(number));
    let (code, told) = api.send("POST", PATH, Some(&class(1))).unwrap();
    assert_eq!((code, &told["reason"]), (409, &json!("AlreadyExists")));
    let first = api.get(&path(1));
    assert_eq!(first["handler"], "orlop");
    let listed = || api.get(&format!("{PATH}?labelSelector={label}"))["items"].as_array().unwrap().len();
    assert_eq!(listed(), 3);
    let from = first["metadata"]["resourceVersion"].as_str().unwrap();
    let patched = api.must("PATCH", &path(1), Some(&json!({"metadata": {"annotations": {"patched": "true"}}})));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    let mut replaced = patched.clone();
    replaced["metadata"]["annotations"]["replaced"] = "true".into();
    assert_eq!(api.must("PUT", &path(1), Some(&replaced))["metadata"]["annotations"]["replaced"], "true");
    api.must("DELETE", &path(1), None);
    assert!(api.find(&path(1)).is_none());
    assert_eq!(listed(), 2);
    api.must("DELETE", &format!("{PATH}?labelSelector={label}"), None);
    assert_eq!(listed(), 0);
    let watch = format!("{PATH}?watch=1&timeoutSeconds=1&resourceVersion={from}&labelSelector={label}");
    let (_, told) = api.send("GET", &watch, None).unwrap();
    let told = told.as_str().expect("several events").to_string();
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_first = events.iter().filter(|event| event["object"]["metadata"]["name"] == name(1).as_str());
    let kinds: Vec<&str> = of_first.map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["MODIFIED", "MODIFIED", "DELETED"]);
}
