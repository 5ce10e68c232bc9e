//! Images that not every pod may use.

mod world;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use world::{World, pod};

fn secret(name: &str, user: &str) -> Arc<Secret> {
    let config = format!(r#"{{"auths": {{"r.example": {{"username": "{user}", "password": "p"}}}}}}"#);
    let data = k8s_openapi::ByteString(config.into_bytes());
    Arc::new(Secret {
        metadata: serde_json::from_value(json!({"name": name, "namespace": "ns", "uid": format!("uid-{name}")}))
            .unwrap(),
        type_: Some("kubernetes.io/dockerconfigjson".into()),
        data: Some([(".dockerconfigjson".to_owned(), data)].into()),
        ..Secret::default()
    })
}

fn spec(policy: &str, secrets: &[&str]) -> serde_json::Value {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "imagePullSecrets": secrets,
        "containers": [{"name": "a", "image": "r.example/private:1", "imagePullPolicy": policy}]
    })
}

#[tokio::test]
async fn an_image_pulled_with_a_secret_is_for_those_who_have_it() {
    let world = World::new();
    world.runtime.make_private("r.example/private:1", "owner");
    for (name, user) in [("good", "owner"), ("copy", "owner"), ("bad", "guest")] {
        world.ports.secrets.lock().unwrap().insert(name.into(), secret(name, user));
    }
    world.apply(pod("u1", spec("IfNotPresent", &["good"])));
    world.until("the owner's pod runs", |world| world.ready("u1")).await;
    assert_eq!(world.runtime.count("pull_image"), 1);
    let records = world.folder.path().join("kubelet/image_manager");
    assert_eq!(std::fs::read_dir(records.join("pulled")).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(records.join("pulling")).unwrap().count(), 0);
    for (uid, secret) in [("u2", "good"), ("u3", "copy")] {
        world.apply(pod(uid, spec("IfNotPresent", &[secret])));
        world.until("runs without a pull", |world| world.ready(uid)).await;
    }
    assert_eq!(world.runtime.count("pull_image"), 1);
    world.apply(pod("u4", spec("Never", &["bad"])));
    world.until("may not know that it is there", |world| world.waiting("u4") == "ErrImageNeverPull").await;
    world.apply(pod("u5", spec("IfNotPresent", &["bad"])));
    world.until("can't pull it", |world| world.has_event("pod-u5 Failed: Failed to pull image")).await;
    world.apply(pod("u6", spec("IfNotPresent", &[])));
    world.until("nor can who has nothing", |world| world.has_event("pod-u6 Failed: Failed to pull image")).await;
    assert!(world.runtime.running("u5").is_empty() && world.runtime.running("u6").is_empty());
}

#[tokio::test]
async fn a_restart_keeps_the_records_of_images_that_are_there() {
    let world = World::new();
    world.runtime.make_private("r.example/private:1", "owner");
    world.ports.secrets.lock().unwrap().insert("good".into(), secret("good", "owner"));
    world.apply(pod("u1", spec("IfNotPresent", &["good"])));
    world.until("runs", |world| world.ready("u1")).await;
    let runtime = world.runtime.clone();
    let folder = world.end().await;
    let records = folder.path().join("kubelet/image_manager");
    let gone = "{\"kind\":\"ImagePulledRecord\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"lastUpdatedTime\":\"2024-10-21T12:26:40Z\",\"imageRef\":\"gone:1\"}";
    let name =
        |image: &str| format!("sha256-{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(image.as_bytes())));
    std::fs::write(records.join("pulled").join(name("gone:1")), gone).unwrap();
    // A pull that was cut short: the image is there, and nobody knows by whose credentials.
    let intent = "{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"image\":\"x:1\"}";
    std::fs::write(records.join("pulling").join(name("x:1")), intent).unwrap();
    let again = World::with(runtime, folder, Default::default(), None);
    let has = |image: &str| records.join("pulled").join(name(image)).exists();
    again.until("records are in order", |_| has("x:1") && has("r.example/private:1") && !has("gone:1")).await;
    assert_eq!(std::fs::read_dir(records.join("pulling")).unwrap().count(), 0);
}

#[tokio::test]
async fn more_pulls_at_once_than_are_allowed_wait_for_their_back_off() {
    let world = World::new();
    for number in 0..40 {
        let image = format!("r.example/many:{number}");
        world.apply(pod(
            &format!("u{number}"),
            json!({"containers": [{"name": "a", "image": image, "imagePullPolicy": "Always"}]}),
        ));
    }
    world.until("some may not be pulled yet", |world| world.has_event(": pull QPS exceeded")).await;
    let refused =
        |world: &World| (0..40).filter(|number| world.waiting(&format!("u{number}")) == "ErrImagePull").count();
    world.until("they are told to wait", |world| refused(world) > 0).await;
    assert!(world.runtime.count("pull_image") >= 10, "the burst is allowed");
}
