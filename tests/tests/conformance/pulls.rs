//! Images that are pulled for a pod, or can't be.

use orlop_tests::case::{Case, container};
use orlop_tests::images::private_registry;
use serde_json::{Value, json};

/// A pod of this image, which is always pulled.
fn make(case: &Case<'_>, image: &str, mut more: Value) {
    more["restartPolicy"] = "Never".into();
    more["containers"] = json!([{"image": image, "imagePullPolicy": "Always", "command": ["true"]}]);
    case.make_pod("p", more);
}

fn until_refused(case: &Case<'_>) {
    case.until_pod("p", "the image can't be had", |pod| {
        assert!(container(pod, "c")["state"]["terminated"].is_null(), "it ran");
        let reason = container(pod, "c")["state"]["waiting"]["reason"].as_str();
        matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
    });
    case.until_event("p", "Failed", "Failed to pull image");
    case.until_event("p", "BackOff", "Back-off pulling image");
    let pod = case.pod("p");
    assert_eq!(container(&pod, "c")["state"]["waiting"]["reason"], "ImagePullBackOff");
    assert_eq!(pod["status"]["phase"], "Pending");
}

/// A registry that is none.
pub fn no_registry(case: &Case<'_>) {
    make(case, "127.0.0.1:9/none/none:1", json!({}));
    until_refused(case);
}

/// One that is there.
pub fn registry(case: &Case<'_>) {
    make(case, &orlop_tests::case::image("busybox"), json!({}));
    let pod = case.until_ended("p");
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert!(container(&pod, "c")["imageID"].as_str().is_some_and(|id| id.contains("@sha256:")), "{pod}");
    case.until_event("p", "Pulled", "Successfully pulled image");
}

/// One that asks for a name, for a pod that has none.
pub fn private_without_secret(case: &Case<'_>) {
    let _registry = private_registry(&case.cluster.world, 5001, "somebody", "a word");
    make(case, "localhost:5001/busybox:1", json!({}));
    until_refused(case);
}

/// For a pod that has one.
pub fn private_with_secret(case: &Case<'_>) {
    let _registry = private_registry(&case.cluster.world, 5002, "somebody", "a word");
    let _ = case.say(&[
        "create",
        "secret",
        "docker-registry",
        "access",
        "--docker-server=localhost:5002",
        "--docker-username=somebody",
        "--docker-password=a word",
    ]);
    make(case, "localhost:5002/busybox:1", json!({"imagePullSecrets": [{"name": "access"}]}));
    let pod = case.until_ended("p");
    assert_eq!(pod["status"]["phase"], "Succeeded");
    case.until_event("p", "Pulled", "Successfully pulled image");
}
