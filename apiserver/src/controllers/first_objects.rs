//! What is there before the first client: namespaces, priority classes, the API's own Service.

use serde_json::{Value, json};

use super::fill_namespace;
use super::recorder::{Note, record};
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry;
use crate::rest::{Creation, Part, Update, create_object, update_object};
use crate::storage::{ObjectKey, Opened};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
///
/// # Errors
/// When the store fails.
pub async fn make_first_objects(api: &Api) -> Result<(), ApiError> {
    let user = User::server();
    for name in NAMESPACES {
        ensure(api, &user, "", "v1", "namespaces", "", json!({"metadata": {"name": name}})).await?;
        fill_namespace(api, name).await?;
    }
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({"metadata": {"name": name}, "value": value, "description": description});
        ensure(api, &user, "scheduling.k8s.io", "v1", "priorityclasses", "", class).await?;
    }
    for object in &api.config.first_objects {
        ensure_configured(api, &user, object.clone()).await?;
    }
    ensure_api_service(api, &user).await
}

/// An object of the configuration, read as if a client had sent it.
async fn ensure_configured(api: &Api, user: &User, mut object: Value) -> Result<(), ApiError> {
    let (version, kind) =
        (object::text(&object, "/apiVersion").to_string(), object::text(&object, "/kind").to_string());
    let resource = registry::find_kind(&version, &kind).ok_or_else(|| {
        ApiError::bad_request(format!("a first object is of the kind {kind} in {version:?}, which is not served"))
    })?;
    crate::openapi::normalize(&mut object, resource.schema).map_err(ApiError::bad_request)?;
    object::remove(&mut object, "kind");
    object::remove(&mut object, "apiVersion");
    let namespace = object::namespace(&object).to_string();
    ensure(api, user, resource.group, resource.version, resource.plural, &namespace, object).await
}

async fn ensure(
    api: &Api,
    user: &User,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> Result<(), ApiError> {
    let resource = registry::find(group, version, plural).ok_or_else(ApiError::no_such_address)?;
    let key = ObjectKey::new(resource, namespace, object::name(&object));
    if api.store.get(&key).map_err(|error| ApiError::from_store(error, resource, &key.name))?.is_some() {
        return Ok(());
    }
    match create_object(api, Creation { resource, namespace, object, user, dry_run: false }).await {
        Err(error) if error.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

/// The Service `kubernetes`: its address and port are where the API itself listens, since nothing routes Services here.
async fn ensure_api_service(api: &Api, user: &User) -> Result<(), ApiError> {
    let (address, port) = (api.config.advertise_address.to_string(), api.config.advertise_port);
    let family = if api.config.advertise_address.is_ipv6() { "IPv6" } else { "IPv4" };
    let spec = json!({
        "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        "ports": [{"name": "https", "protocol": "TCP", "port": port, "targetPort": port}],
    });
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"metadata": {"name": "kubernetes", "labels": labels}, "spec": spec});
    ensure(api, user, "", "v1", "services", "default", service).await?;
    let key = ObjectKey::new(registry::core("services"), "default", "kubernetes");
    let update = Update { key: &key, part: Part::Anything, user, dry_run: false, patched: false };
    // The address may be another one than at the last start.
    update_object(api, update, |old| {
        let mut new = old.clone();
        new["spec"] = spec.clone();
        Ok(new)
    })
    .await?;
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    ensure(api, user, "discovery.k8s.io", "v1", "endpointslices", "default", slice.clone()).await?;
    let slices = registry::find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(ApiError::no_such_address)?;
    let key = ObjectKey::new(slices, "default", "kubernetes");
    let update = Update { key: &key, part: Part::Anything, user, dry_run: false, patched: false };
    update_object(api, update, |old| {
        let mut new = old.clone();
        for field in ["addressType", "endpoints", "ports"] {
            object::copy_key(&slice, &mut new, field);
        }
        Ok(new)
    })
    .await?;
    Ok(())
}

/// Tells by events what was damaged when the store was opened.
pub async fn tell_damage(api: &Api, opened: &Opened) {
    let key = ObjectKey::new(registry::core("namespaces"), "", "default");
    let Some(about) = api.store.get_value(&key).ok().flatten() else { return };
    let mut messages = Vec::new();
    for damaged in &opened.damaged_objects {
        messages.push(format!("the stored object {damaged} was damaged and has been taken out"));
    }
    for message in &messages {
        record(
            api,
            "Namespace",
            "v1",
            &about,
            Note { kind: "Warning", reason: "StoreDamaged", message, component: "apiserver" },
        )
        .await;
    }
}
