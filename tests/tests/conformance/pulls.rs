//! Images that are pulled for a pod, or can't be.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orlop_tests::case::{Case, container};
use orlop_tests::images::private_registry;
use orlop_tests::world::World;
use serde_json::{Value, json};

/// The registry that the node's credential program knows.
const PROGRAM_PORT: u16 = 5003;

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

/// A program that knows the name and password of one registry, its configuration, and the node's flags for them.
pub fn credential_flags(world: &World) -> Vec<String> {
    let (programs, config) = (world.folder().join("credentials"), world.folder().join("credentials.json"));
    fs::create_dir_all(&programs).unwrap();
    let image = format!("localhost:{PROGRAM_PORT}");
    let answer = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry", "cacheDuration": "0s",
        "auth": {&image: {"username": "somebody", "password": "a word"}}});
    let program = programs.join("knows");
    fs::write(&program, format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let provider = json!({"name": "knows", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "matchImages": [image], "defaultCacheDuration": "0s"});
    let text = json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [provider]});
    fs::write(&config, text.to_string()).unwrap();
    let path = |path: std::path::PathBuf| path.display().to_string();
    vec![
        "--image-credential-provider-config".into(),
        path(config),
        "--image-credential-provider-bin-dir".into(),
        path(programs),
    ]
}

/// For a pod that has none, by the node's program.
pub fn by_credential_program(case: &Case<'_>) {
    let _registry = private_registry(&case.cluster.world, PROGRAM_PORT, "somebody", "a word");
    make(case, &format!("localhost:{PROGRAM_PORT}/busybox:1"), json!({}));
    let pod = case.until_ended("p");
    assert_eq!(pod["status"]["phase"], "Succeeded");
    case.until_event("p", "Pulled", "Successfully pulled image");
}
