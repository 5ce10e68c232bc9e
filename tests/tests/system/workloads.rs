//! What the controllers of a real control plane make of shipped manifests: they run, roll, scale and clean up on our node.

use orlop_tests::case::{Case, condition, container};
use orlop_tests::world::until;
use serde_json::Value;

fn manifest(name: &str) -> String {
    format!("{}/../config/examples/workloads/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// An object of a group, as it is now.
fn object(case: &Case<'_>, group: &str, kind: &str, name: &str) -> Value {
    case.cluster.api.get(&format!("/apis/{group}/namespaces/{}/{kind}/{name}", case.namespace))
}

/// The pods with a label that are not on their way out.
fn pods(case: &Case<'_>, label: &str) -> Vec<Value> {
    let list = case.cluster.api.get(&format!("{}?labelSelector={label}", case.path("pods", "")));
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_string()
}

/// Deletes what the manifest made and waits until no pod is left of it.
fn delete(case: &Case<'_>, file: &str) {
    let _ = case.say(&["delete", "--cascade=foreground", "--timeout=60s", "-f", file]);
    let all = case.path("pods", "");
    until("the pods are gone", || case.cluster.api.get(&all)["items"].as_array()?.is_empty().then_some(()));
}

/// A Deployment serves all the time while it rolls, scales and rolls back, and a version that never gets ready changes
/// nothing for its callers.
pub fn deployments(case: &Case<'_>) {
    let file = manifest("deployment");
    let _ = case.say(&["apply", "-f", &file]);
    let roll = |timeout: &str| case.say(&["rollout", "status", "deployment/web", timeout]);
    let rolled = "successfully rolled out";
    assert!(roll("--timeout=60s").contains(rolled));
    let versions = || -> Option<Vec<String>> {
        pods(case, "app=web")
            .iter()
            .filter(|pod| condition(pod, "Ready") == "True")
            .map(|pod| case.fetch(&format!("http://{}:8080/version", pod["status"]["podIP"].as_str()?)))
            .collect()
    };
    let all = |version: &str, count: usize| {
        until(&format!("{count} pods serve version {version}"), || {
            let seen = versions()?;
            (seen.len() == count && seen.iter().all(|seen| seen.trim() == version)).then_some(())
        });
    };
    all("one", 3);

    let _ = case.say(&["set", "env", "deployment/web", "VERSION=two"]);
    until("the roll is over", || {
        let status = object(case, "apps/v1", "deployments", "web")["status"].clone();
        // No surge beyond one, and never fewer than asked for.
        assert!(status["replicas"].as_i64() <= Some(4), "{status}");
        assert!(status["availableReplicas"].as_i64() >= Some(3), "{status}");
        let current = status["updatedReplicas"] == 3 && status["replicas"] == 3;
        (current && status["observedGeneration"] == 2).then_some(())
    });
    all("two", 3);

    let _ = case.say(&["scale", "deployment/web", "--replicas=5"]);
    all("two", 5);
    let _ = case.say(&["scale", "deployment/web", "--replicas=2"]);
    all("two", 2);

    let _ = case.say(&["set", "image", "deployment/web", "web=localhost:5000/nothing:1"]);
    until("the new version waits for its image", || {
        let reasons = |pod: &Value| container(pod, "web")["state"]["waiting"]["reason"].clone();
        pods(case, "app=web").iter().any(|pod| reasons(pod) == "ImagePullBackOff").then_some(())
    });
    all("two", 2);
    let _ = case.say(&["rollout", "undo", "deployment/web"]);
    assert!(roll("--timeout=60s").contains(rolled));
    all("two", 2);
    let _ = case.say(&["rollout", "undo", "deployment/web", "--to-revision=1"]);
    assert!(roll("--timeout=60s").contains(rolled));
    all("one", 2);
    delete(case, &file);
}

/// A StatefulSet makes its pods one after the other, each keeps its name and its claim over a deletion and a roll.
pub fn stateful_sets(case: &Case<'_>) {
    case.cluster.need_storage();
    let file = manifest("stateful");
    let _ = case.say(&["apply", "-f", &file]);
    let first = case.until_present("store-0");
    assert!(pods(case, "app=store").iter().all(|pod| name(pod) == "store-0"), "one after the other");
    let second = case.until_present("store-1");
    let ready_at = |pod: &Value| -> Option<String> {
        let conditions = pod["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
        Some(ready["lastTransitionTime"].as_str()?.to_string())
    };
    let begun = second["metadata"]["creationTimestamp"].as_str().unwrap().to_string();
    assert!(ready_at(&case.until_ready("store-0")) <= Some(begun), "the second comes when the first is ready");
    case.until_ready("store-1");

    // Deleted: the same name, the same claim, another pod.
    let _ = case.say(&["delete", "pod", "store-0"]);
    // In between there is none.
    let again = until("store-0 is made again", || {
        let found = case.cluster.api.find(&case.path("pods", "store-0"))?;
        (found["metadata"]["uid"] != first["metadata"]["uid"]).then_some(found)
    });
    let claim = |pod: &Value| {
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        volumes.iter().find_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_string))
    };
    assert_eq!(claim(&again).as_deref(), Some("data-store-0"));
    case.until_ready("store-0");
    assert_eq!(case.exec("store-0", "cat /data/starts"), "store-0\nstore-0");

    // A roll goes from the last to the first.
    let _ = case.say(&["set", "env", "statefulset/store", "VERSION=two"]);
    assert!(case.say(&["rollout", "status", "statefulset/store", "--timeout=60s"]).contains("complete"));
    let (zero, one) = (case.until_ready("store-0"), case.until_ready("store-1"));
    assert!(one["metadata"]["creationTimestamp"].as_str() <= zero["metadata"]["creationTimestamp"].as_str());
    assert_eq!(case.exec("store-1", "cat /data/starts; echo $VERSION"), "store-1\nstore-1\ntwo");

    // Scaled down, the last goes and its claim stays; scaled up, it has it again.
    let _ = case.say(&["scale", "statefulset/store", "--replicas=1"]);
    case.until_gone("store-1");
    assert!(case.cluster.api.find(&case.path("persistentvolumeclaims", "data-store-1")).is_some());
    let _ = case.say(&["scale", "statefulset/store", "--replicas=2"]);
    case.until_present("store-1");
    case.until_ready("store-1");
    assert_eq!(case.exec("store-1", "wc -l < /data/starts").trim(), "3");
    delete(case, &file);
    let claims = case.path("persistentvolumeclaims", "");
    until("the claims go with the set", || case.cluster.api.get(&claims)["items"].as_array()?.is_empty().then_some(()));
}

/// A DaemonSet has one pod on the node, whatever the node's taints, and replaces it when it is changed or deleted.
pub fn daemon_sets(case: &Case<'_>) {
    let file = manifest("daemon");
    let _ = case.say(&["apply", "-f", &file]);
    let one = |what: &str, not: &str| {
        until(what, || {
            let all = pods(case, "app=watcher");
            assert!(all.len() <= 1, "more than one on a node");
            all.into_iter().find(|pod| condition(pod, "Ready") == "True" && name(pod) != not)
        })
    };
    let first = name(&one("it runs on the node", ""));
    assert_eq!(case.log(&first, ""), format!("watching {}", case.cluster.node_name));
    let _ = case.say(&["delete", "pod", &first]);
    let second = name(&one("it is made again", &first));
    let _ = case.say(&["set", "env", "daemonset/watcher", "MORE=1"]);
    one("it is rolled", &second);
    assert!(case.say(&["rollout", "status", "daemonset/watcher", "--timeout=60s"]).contains("rolled out"));
    delete(case, &file);
}

/// Jobs: several at a time, by number with a second try in the same pod, one without hope, and one that comes each minute.
pub fn jobs(case: &Case<'_>) {
    let file = manifest("jobs");
    let _ = case.say(&["apply", "-f", &file]);
    let status = |name: &str| object(case, "batch/v1", "jobs", name)["status"].clone();
    let _ = case.say(&["wait", "--for=condition=Complete", "--timeout=60s", "job/parallel", "job/indexed"]);
    let _ = case.say(&["wait", "--for=condition=Failed", "--timeout=60s", "job/hopeless"]);
    assert_eq!(status("parallel")["succeeded"], 6);
    assert_eq!(status("indexed")["completedIndexes"], "0-3");
    assert_eq!(status("hopeless")["failed"], 1);
    let done = pods(case, "job-name=parallel");
    assert_eq!(done.len(), 6);
    for pod in &done {
        assert_eq!(case.log(&name(pod), ""), format!("done by {}", name(pod)));
    }
    for pod in pods(case, "job-name=indexed") {
        let index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap();
        let tries = if index == "2" { 1 } else { 0 };
        assert_eq!(container(&pod, "work")["restartCount"], tries, "index {index}");
        assert_eq!(case.log(&name(&pod), ""), format!("number {index}"));
    }
    let failed = &pods(case, "job-name=hopeless")[0];
    assert_eq!(container(failed, "work")["state"]["terminated"]["exitCode"], 7);

    // At the full minute.
    let list = format!("/apis/batch/v1/namespaces/{}/jobs", case.namespace);
    until("the minute's job is done", || {
        let jobs = case.cluster.api.get(&list);
        let minutely = |job: &&Value| name(job).starts_with("minutely-") && job["status"]["succeeded"] == 1;
        jobs["items"].as_array()?.iter().find(minutely).map(drop)
    });
    delete(case, &file);
}
