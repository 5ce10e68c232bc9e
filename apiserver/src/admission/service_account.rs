//! The service account of a pod and the volume that carries its token.

use serde_json::{Value, json};

use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::registry;
use crate::rest::{Creation, random_letters};
use crate::storage::ObjectKey;

/// Where containers find the token.
pub const ACCOUNT_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// ConfigMap of each namespace with the certificate of the API's authority.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Life of the token (`WarnOnlyBoundTokenExpirationPeriod`), in seconds.
const TOKEN_SECONDS: i64 = 3607;
/// Mode of the files.
const FILE_MODE: i64 = 0o644;

/// Sets the account, its pull secrets and its token volume.
///
/// # Errors
/// 403 when the account is not there, or a mirror pod names one.
pub fn admit(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    let pods = registry::core("pods");
    let pod_name = object::name(new).to_string();
    let mirror = !object::text(new, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty();
    if mirror {
        let named = !object::text(new, "/spec/serviceAccountName").is_empty();
        return if named {
            Err(ApiError::forbidden(pods, &pod_name, "a mirror pod may not reference service accounts"))
        } else {
            Ok(())
        };
    }
    let spec = object::map(new, "spec");
    let name = spec
        .get("serviceAccountName")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
        .to_string();
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    let accounts = registry::core("serviceaccounts");
    let namespace = object::namespace(new).to_string();
    let found = api
        .store
        .get_value(&ObjectKey::new(accounts, &namespace, &name))
        .map_err(|error| ApiError::from_store(error, accounts, &name))?;
    let account = found.ok_or_else(|| {
        ApiError::forbidden(
            pods,
            &pod_name,
            &format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
        )
    })?;
    if object::items(new, "/spec/imagePullSecrets").is_empty()
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        new["spec"]["imagePullSecrets"] = secrets.clone();
    }
    let wanted = new
        .pointer("/spec/automountServiceAccountToken")
        .or_else(|| account.get("automountServiceAccountToken"))
        .and_then(Value::as_bool)
        .unwrap_or(true);
    if wanted {
        mount_token(new);
    }
    Ok(())
}

fn mount_token(new: &mut Value) {
    let spec = object::map(new, "spec");
    let existing = spec.get("volumes").and_then(Value::as_array).into_iter().flatten().find(|volume| {
        object::text(volume, "/name").starts_with("kube-api-access-") && volume.get("projected").is_some()
    });
    let (name, is_new) = match existing {
        Some(volume) => (object::text(volume, "/name").to_string(), false),
        None => (format!("kube-api-access-{}", random_letters(5)), true),
    };
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let there = object::items(container, "/volumeMounts")
                .iter()
                .any(|mount| object::text(mount, "/mountPath") == ACCOUNT_MOUNT_PATH);
            if there || !container.is_object() {
                continue;
            }
            object::default(container, "volumeMounts", || json!([]));
            if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": ACCOUNT_MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted && is_new {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&name));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {"defaultMode": FILE_MODE, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": ROOT_CA_CONFIG_MAP, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]},
    })
}

/// What every namespace has: its default account and the certificate of the API's authority.
pub fn namespace_content<'a>(ca_pem: &str, namespace: &'a str, user: &'a crate::auth::User) -> [Creation<'a>; 2] {
    let creation = |plural: &str, object: Value| Creation {
        resource: registry::core(plural),
        namespace,
        object,
        user,
        dry_run: false,
    };
    let description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
    [
        creation("serviceaccounts", json!({"metadata": {"name": "default"}})),
        creation(
            "configmaps",
            json!({
                "metadata": {"name": ROOT_CA_CONFIG_MAP, "annotations": {"kubernetes.io/description": description}},
                "data": {"ca.crt": ca_pem},
            }),
        ),
    ]
}
