//! The application of several parts, from the shipped manifests as they are.

use orlop_tests::case::{Case, container};
use orlop_tests::world::until;

/// nginx in front, a python program with an init container and a sidecar, redis on a claim.
pub fn several_parts(case: &Case<'_>) {
    case.cluster.need_storage();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/app");
    let said = case.say(&["apply", "-f", folder]);
    assert_eq!(said.matches(" created").count(), 7, "{said}");
    let ready = case.say(&["wait", "--for=condition=Ready", "pod/front", "pod/backend", "pod/redis", "--timeout=60s"]);
    assert_eq!(ready.matches("condition met").count(), 3, "{ready}");
    let page = || case.fetch("http://127.0.0.1:18000/visit");
    assert_eq!(page().as_deref(), Some("visit 1 of backend\n"));
    assert_eq!(page().as_deref(), Some("visit 2 of backend\n"));
    until("the sidecar has shipped the log", || {
        (case.log("backend", "ship-log") == "visit 1 of backend\nvisit 2 of backend").then_some(())
    });
    assert!(case.log("front", "").contains("GET /visit"), "{}", case.log("front", ""));
    let claim = case.cluster.api.get(&case.path("persistentvolumeclaims", "redis"));
    assert_eq!(claim["status"]["phase"], "Bound");

    // The store's pod goes, what it kept stays.
    let _ = case.say(&["delete", "pod", "redis"]);
    assert_eq!(page(), None, "503 without redis");
    let _ = case.say(&["apply", "-f", &format!("{folder}/redis.yaml")]);
    case.until_ready("redis");
    until("the count goes on", || (page()? == "visit 3 of backend\n").then_some(()));
    for (pod, name) in [("backend", "app"), ("backend", "ship-log"), ("front", "nginx")] {
        assert_eq!(container(&case.pod(pod), name)["restartCount"], 0, "{pod}/{name}");
    }
    let volume = claim["spec"]["volumeName"].as_str().unwrap().to_string();
    let _ = case.say(&["delete", "-f", folder]);
    let path = format!("/api/v1/persistentvolumes/{volume}");
    until("the volume is deleted with its claim", || case.cluster.api.find(&path).is_none().then_some(()));
}
