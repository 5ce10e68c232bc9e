//! Volumes: claims find or get one, and what is released is kept or deleted as its policy says.

mod csi;
mod matching;
mod provision;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::on_change;
use super::recorder::{Note, record};
use crate::admission::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::rest::{Creation, Part, Update, create_object, update_object};
use crate::storage::ObjectKey;

/// Name of this part in events.
const NAME: &str = "persistentvolume-controller";
/// Annotation: the node for which a claim shall get its volume.
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation: the driver that made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// What a pass looks at.
struct View {
    claims: Vec<Value>,
    volumes: Vec<Value>,
    classes: BTreeMap<String, Value>,
    pods: Vec<Value>,
}

fn resource(group: &str, plural: &str) -> Result<&'static Resource, ApiError> {
    registry::find(group, "v1", plural).ok_or_else(ApiError::no_such_address)
}

pub(super) async fn run(api: Arc<Api>) {
    let mut watched =
        vec![registry::core("pods"), registry::core("persistentvolumeclaims"), registry::core("persistentvolumes")];
    watched.extend(registry::find("storage.k8s.io", "v1", "storageclasses"));
    on_change(&api, &watched, NAME, || pass(&api)).await;
}

async fn pass(api: &Arc<Api>) -> Result<(), ApiError> {
    let list = |resource: &'static Resource| {
        api.store.list_values(resource, None).map_err(|error| ApiError::from_store(error, resource, ""))
    };
    let view = View {
        claims: list(registry::core("persistentvolumeclaims"))?,
        volumes: list(registry::core("persistentvolumes"))?,
        classes: list(resource("storage.k8s.io", "storageclasses")?)?
            .into_iter()
            .map(|class| (object::name(&class).to_string(), class))
            .collect(),
        pods: list(registry::core("pods"))?,
    };
    make_ephemeral_claims(api, &view).await?;
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut wanting = Vec::new();
    for claim in &view.claims {
        if object::is_terminating(claim) {
            release_claim(api, claim, &view.pods).await?;
        } else if object::text(claim, "/status/phase") == "Bound" {
            check_bound(api, claim, &view.volumes).await?;
        } else if let Some(volume) = matching::volume_for(claim, &view.volumes, &taken, waits(&view, claim)) {
            taken.insert(object::name(volume).to_string());
            bind(api, claim, volume).await?;
        } else {
            wanting.push(claim);
        }
    }
    // Drivers may be slow: one claim does not wait for another.
    let made =
        futures::future::join_all(wanting.into_iter().map(|claim| provision::provision(api, claim, &view.classes)))
            .await;
    let kept =
        futures::future::join_all(view.volumes.iter().map(|volume| settle_volume(api, volume, &view.claims))).await;
    made.into_iter().chain(kept).collect()
}

/// True when the claim's class waits for a consumer and none has been given a node yet.
fn waits(view: &View, claim: &Value) -> bool {
    let class = view.classes.get(object::text(claim, "/spec/storageClassName"));
    class.is_some_and(|class| object::text(class, "/volumeBindingMode") == "WaitForFirstConsumer")
        && annotation(claim, SELECTED_NODE).is_empty()
}

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object.pointer("/metadata/annotations").and_then(|map| map.get(key)).and_then(Value::as_str).unwrap_or_default()
}

fn key_of(resource: &'static Resource, object: &Value) -> ObjectKey {
    ObjectKey::new(resource, object::namespace(object), object::name(object))
}

/// Changes an object; one that is gone is no error.
async fn change(
    api: &Api,
    key: &ObjectKey,
    apply: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Option<Value>, ApiError> {
    let user = User::server();
    match update_object(api, Update { key, part: Part::Anything, user: &user, dry_run: false, patched: false }, apply)
        .await
    {
        Err(error) if error.code == 404 => Ok(None),
        other => other.map(Some),
    }
}

async fn remove_finalizer(api: &Api, key: &ObjectKey, name: &str) -> Result<(), ApiError> {
    let removed = change(api, key, |old| {
        let mut new = old.clone();
        let kept: Vec<&str> = object::finalizers(old).into_iter().filter(|other| *other != name).collect();
        new["metadata"]["finalizers"] = json!(kept);
        Ok(new)
    });
    removed.await.map(|_| ())
}

/// A claim goes when no pod that still runs uses it.
async fn release_claim(api: &Api, claim: &Value, pods: &[Value]) -> Result<(), ApiError> {
    let name = object::name(claim);
    let used = pods.iter().any(|pod| {
        object::namespace(pod) == object::namespace(claim)
            && !matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed")
            && !object::text(pod, "/spec/nodeName").is_empty()
            && object::items(pod, "/spec/volumes").iter().any(|volume| {
                object::text(volume, "/persistentVolumeClaim/claimName") == name
                    || (volume.get("ephemeral").is_some()
                        && format!("{}-{}", object::name(pod), object::text(volume, "/name")) == name)
            })
    });
    if used || !object::finalizers(claim).contains(&CLAIM_PROTECTION) {
        return Ok(());
    }
    remove_finalizer(api, &key_of(registry::core("persistentvolumeclaims"), claim), CLAIM_PROTECTION).await
}

/// A bound claim whose volume is gone is lost.
async fn check_bound(api: &Api, claim: &Value, volumes: &[Value]) -> Result<(), ApiError> {
    let name = object::text(claim, "/spec/volumeName");
    if volumes.iter().any(|volume| object::name(volume) == name) {
        return Ok(());
    }
    let key = key_of(registry::core("persistentvolumeclaims"), claim);
    change(api, &key, |old| {
        let mut new = old.clone();
        new["status"] = json!({"phase": "Lost"});
        Ok(new)
    })
    .await?;
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    record(
        api,
        "PersistentVolumeClaim",
        "v1",
        claim,
        Note { kind: "Warning", reason: "ClaimLost", message, component: NAME },
    )
    .await;
    Ok(())
}

/// Binds both to one another, the volume first.
async fn bind(api: &Api, claim: &Value, volume: &Value) -> Result<(), ApiError> {
    let volume_key = key_of(registry::core("persistentvolumes"), volume);
    let reference = claim_reference(claim);
    let bound = change(api, &volume_key, |old| {
        let mut new = old.clone();
        let prebound = object::text(old, "/spec/claimRef/name") == object::name(claim);
        if !object::text(old, "/spec/claimRef/uid").is_empty()
            && object::text(old, "/spec/claimRef/uid") != object::uid(claim)
        {
            return Err(ApiError::conflict(volume_key.resource, &volume_key.name, "it is bound to another claim"));
        }
        new["spec"]["claimRef"] = reference.clone();
        new["status"]["phase"] = json!("Bound");
        if !prebound {
            let annotations = object::metadata(&mut new).entry("annotations").or_insert_with(|| json!({}));
            annotations["pv.kubernetes.io/bound-by-controller"] = json!("yes");
        }
        Ok(new)
    })
    .await?;
    let Some(volume) = bound else { return Ok(()) };
    let claim_key = key_of(registry::core("persistentvolumeclaims"), claim);
    change(api, &claim_key, |old| {
        let mut new = old.clone();
        new["spec"]["volumeName"] = json!(object::name(&volume));
        let annotations = object::metadata(&mut new).entry("annotations").or_insert_with(|| json!({}));
        annotations["pv.kubernetes.io/bind-completed"] = json!("yes");
        annotations["pv.kubernetes.io/bound-by-controller"] = json!("yes");
        let (modes, capacity) = (volume.pointer("/spec/accessModes"), volume.pointer("/spec/capacity"));
        new["status"] = json!({"phase": "Bound", "accessModes": modes, "capacity": capacity});
        Ok(new)
    })
    .await?;
    Ok(())
}

fn claim_reference(claim: &Value) -> Value {
    json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": object::namespace(claim), "name": object::name(claim),
        "uid": object::uid(claim), "resourceVersion": object::text(claim, "/metadata/resourceVersion"),
    })
}

/// The phase of a volume, and its end.
async fn settle_volume(api: &Arc<Api>, volume: &Value, claims: &[Value]) -> Result<(), ApiError> {
    let key = key_of(registry::core("persistentvolumes"), volume);
    let owner = object::text(volume, "/spec/claimRef/uid");
    let claimed = claims.iter().any(|claim| object::uid(claim) == owner && !owner.is_empty());
    // A claim may be newer than what this pass has read.
    let claimed = claimed || (!owner.is_empty() && claim_is_there(api, volume)?);
    if object::is_terminating(volume) && !claimed {
        return remove_finalizer(api, &key, VOLUME_PROTECTION).await;
    }
    let phase = match (owner.is_empty(), claimed) {
        (true, _) => "Available",
        (false, true) => "Bound",
        (false, false) => "Released",
    };
    let present = object::text(volume, "/status/phase");
    if present != phase && !(phase == "Released" && present == "Failed") {
        change(api, &key, |old| {
            let mut new = old.clone();
            new["status"]["phase"] = json!(phase);
            Ok(new)
        })
        .await?;
    }
    let delete = phase == "Released" && object::text(volume, "/spec/persistentVolumeReclaimPolicy") == "Delete";
    if delete { provision::delete(api, volume).await } else { Ok(()) }
}

fn claim_is_there(api: &Api, volume: &Value) -> Result<bool, ApiError> {
    let claims = registry::core("persistentvolumeclaims");
    let (namespace, name) =
        (object::text(volume, "/spec/claimRef/namespace"), object::text(volume, "/spec/claimRef/name"));
    let found = api
        .store
        .get_value(&ObjectKey::new(claims, namespace, name))
        .map_err(|error| ApiError::from_store(error, claims, name))?;
    Ok(found.is_some_and(|claim| object::uid(&claim) == object::text(volume, "/spec/claimRef/uid")))
}

/// A pod's generic ephemeral volumes get claims that it owns.
async fn make_ephemeral_claims(api: &Api, view: &View) -> Result<(), ApiError> {
    let user = User::server();
    let claims = registry::core("persistentvolumeclaims");
    for pod in view.pods.iter().filter(|pod| !object::is_terminating(pod)) {
        for volume in object::items(pod, "/spec/volumes") {
            let Some(template) = volume.pointer("/ephemeral/volumeClaimTemplate") else { continue };
            let (namespace, name) =
                (object::namespace(pod), format!("{}-{}", object::name(pod), object::text(volume, "/name")));
            if view.claims.iter().any(|claim| object::namespace(claim) == namespace && object::name(claim) == name) {
                continue;
            }
            let mut claim = template.clone();
            let metadata = object::metadata(&mut claim);
            metadata.insert("name".into(), json!(name));
            let owner = json!({
                "apiVersion": "v1", "kind": "Pod", "name": object::name(pod), "uid": object::uid(pod),
                "controller": true, "blockOwnerDeletion": true,
            });
            metadata.insert("ownerReferences".into(), json!([owner]));
            match create_object(
                api,
                Creation { resource: claims, namespace, object: claim, user: &user, dry_run: false },
            )
            .await
            {
                Err(error) if matches!(error.code, 403 | 404 | 409) => {}
                other => {
                    other?;
                }
            }
        }
    }
    Ok(())
}
