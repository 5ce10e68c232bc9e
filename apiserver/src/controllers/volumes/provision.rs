//! Making a volume for a claim and deleting it again, by the CSI driver that the class names.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use orlop_proto::csi::{CapacityRange, CreateVolumeRequest, Topology, TopologyRequirement, Volume, VolumeCapability};
use serde_json::{Value, json};

use super::{NAME, PROVISIONED_BY, SELECTED_NODE, annotation, bind, change, claim_reference, csi, key_of, resource};
use crate::admission::VOLUME_PROTECTION;
use crate::api::Api;
use crate::auth::User;
use crate::controllers::recorder::{Note, record};
use crate::error::ApiError;
use crate::object;
use crate::quantity::Quantity;
use crate::registry;
use crate::rest::query::DeleteOptions;
use crate::rest::{Creation, create_object, delete_object};
use crate::storage::ObjectKey;

/// Prefix of class parameters that are not for the driver.
const RESERVED_PREFIX: &str = "csi.storage.k8s.io/";

async fn tell(api: &Api, claim: &Value, kind: &'static str, reason: &'static str, message: &str) {
    record(api, "PersistentVolumeClaim", "v1", claim, Note { kind, reason, message, component: NAME }).await;
}

/// Makes the claim's volume if its class has a driver here and the time has come.
pub(super) async fn provision(
    api: &Arc<Api>,
    claim: &Value,
    classes: &BTreeMap<String, Value>,
) -> Result<(), ApiError> {
    let class_name = object::text(claim, "/spec/storageClassName");
    if class_name.is_empty() || !object::text(claim, "/spec/volumeName").is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        tell(api, claim, "Normal", "FailedBinding", message).await;
        return Ok(());
    }
    let Some(class) = classes.get(class_name) else {
        tell(
            api,
            claim,
            "Warning",
            "ProvisioningFailed",
            &format!("storageclass.storage.k8s.io {class_name:?} not found"),
        )
        .await;
        return Ok(());
    };
    let driver = object::text(class, "/provisioner").to_string();
    let late = object::text(class, "/volumeBindingMode") == "WaitForFirstConsumer";
    let node = annotation(claim, SELECTED_NODE).to_string();
    if late && node.is_empty() {
        tell(api, claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
            .await;
        return Ok(());
    }
    let Some(socket) = api.config.csi_sockets.get(&driver) else {
        if driver != "kubernetes.io/no-provisioner" {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{driver}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            tell(api, claim, "Normal", "ExternalProvisioning", &message).await;
        }
        return Ok(());
    };
    let request = match request(api, claim, class, &driver, &node) {
        Ok(request) => request,
        Err(why) => {
            tell(
                api,
                claim,
                "Warning",
                "ProvisioningFailed",
                &format!("failed to provision volume with StorageClass {class_name:?}: {why}"),
            )
            .await;
            return Ok(());
        }
    };
    let name = request.name.clone();
    match csi::create_volume(socket, request).await {
        Ok(volume) => store(api, claim, class, &driver, &name, volume).await,
        Err(error) => {
            tell(
                api,
                claim,
                "Warning",
                "ProvisioningFailed",
                &format!("failed to provision volume with StorageClass {class_name:?}: {error}"),
            )
            .await;
            Err(ApiError::unavailable(format!("claim {}/{}: {error}", object::namespace(claim), object::name(claim))))
        }
    }
}

fn request(api: &Api, claim: &Value, class: &Value, driver: &str, node: &str) -> Result<CreateVolumeRequest, String> {
    if claim.pointer("/spec/dataSource").is_some() || claim.pointer("/spec/dataSourceRef").is_some() {
        return Err("a claim with a data source is not served".into());
    }
    let parameters = class.get("parameters").and_then(Value::as_object).cloned().unwrap_or_default();
    let fs_type = parameters.get("csi.storage.k8s.io/fstype").and_then(Value::as_str).unwrap_or_default().to_string();
    let access_type = if object::text(claim, "/spec/volumeMode") == "Block" {
        AccessType::Block(BlockVolume {})
    } else {
        let mount_flags = object::strings(class, "/mountOptions").into_iter().map(String::from).collect();
        AccessType::Mount(MountVolume { fs_type, mount_flags, ..MountVolume::default() })
    };
    let modes = object::strings(claim, "/spec/accessModes");
    let volume_capabilities = modes
        .iter()
        .map(|mode| VolumeCapability {
            access_mode: Some(AccessMode { mode: access_mode(mode).into() }),
            access_type: Some(access_type.clone()),
        })
        .collect();
    let size =
        Quantity::parse(object::text(claim, "/spec/resources/requests/storage")).ok_or("the claim asks for no size")?;
    let required_bytes = i64::try_from(size.units()).map_err(|_| "the claim asks for more than there can be")?;
    Ok(CreateVolumeRequest {
        name: format!("pvc-{}", object::uid(claim)),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capabilities,
        parameters: parameters
            .into_iter()
            .filter(|(key, _)| !key.starts_with(RESERVED_PREFIX))
            .map(|(key, value)| (key, value.as_str().unwrap_or_default().to_string()))
            .collect(),
        accessibility_requirements: topology(api, driver, node),
        ..CreateVolumeRequest::default()
    })
}

fn access_mode(mode: &str) -> Mode {
    match mode {
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteOncePod" => Mode::SingleNodeSingleWriter,
        _ => Mode::SingleNodeWriter,
    }
}

/// Where the volume must be reachable: the topology keys of the driver on the node, with the node's labels.
fn topology(api: &Api, driver: &str, node: &str) -> Option<TopologyRequirement> {
    let nodes = api.store.list_values(registry::core("nodes"), None).ok()?;
    let node = nodes.iter().find(|other| object::name(other) == node).or_else(|| nodes.first())?;
    let csi_nodes = resource("storage.k8s.io", "csinodes").ok()?;
    let csi_node = api.store.get_value(&ObjectKey::new(csi_nodes, "", object::name(node))).ok()??;
    let entry =
        object::items(&csi_node, "/spec/drivers").iter().find(|entry| object::text(entry, "/name") == driver)?;
    let labels = node.pointer("/metadata/labels")?;
    let segments: std::collections::HashMap<String, String> = object::strings(entry, "/topologyKeys")
        .into_iter()
        .filter_map(|key| Some((key.to_string(), labels.get(key)?.as_str()?.to_string())))
        .collect();
    if segments.is_empty() {
        return None;
    }
    let topology = Topology { segments: segments.into_iter().collect() };
    Some(TopologyRequirement { requisite: vec![topology.clone()], preferred: vec![topology] })
}

/// Stores the volume that the driver made and binds it.
async fn store(
    api: &Arc<Api>,
    claim: &Value,
    class: &Value,
    driver: &str,
    name: &str,
    made: Volume,
) -> Result<(), ApiError> {
    let volumes = registry::core("persistentvolumes");
    let bytes = if made.capacity_bytes > 0 {
        made.capacity_bytes.to_string()
    } else {
        object::text(claim, "/spec/resources/requests/storage").to_string()
    };
    let capacity = Quantity::parse(&as_binary(&bytes)).map_or(bytes, |size| size.canonical());
    let mut csi = json!({"driver": driver, "volumeHandle": made.volume_id});
    if !made.volume_context.is_empty() {
        csi["volumeAttributes"] = json!(made.volume_context);
    }
    let fs_type = class.pointer("/parameters").and_then(|map| map.get("csi.storage.k8s.io/fstype"));
    if let Some(fs_type) = fs_type {
        csi["fsType"] = fs_type.clone();
    }
    let mut spec = json!({
        "capacity": {"storage": capacity}, "accessModes": claim.pointer("/spec/accessModes"), "csi": csi,
        "claimRef": claim_reference(claim), "persistentVolumeReclaimPolicy": class.get("reclaimPolicy"),
        "storageClassName": object::name(class), "volumeMode": claim.pointer("/spec/volumeMode"),
    });
    if let Some(options) = class.get("mountOptions") {
        spec["mountOptions"] = options.clone();
    }
    let terms: Vec<Value> = made
        .accessible_topology
        .iter()
        .filter(|topology| !topology.segments.is_empty())
        .map(|topology| {
            let expressions: Vec<Value> = topology
                .segments
                .iter()
                .map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]}))
                .collect();
            json!({"matchExpressions": expressions})
        })
        .collect();
    if !terms.is_empty() {
        spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
    }
    let object = json!({"metadata": {"name": name, "annotations": {PROVISIONED_BY: driver}, "finalizers": [VOLUME_PROTECTION]}, "spec": spec});
    let user = User::server();
    let volume =
        match create_object(api, Creation { resource: volumes, namespace: "", object, user: &user, dry_run: false })
            .await
        {
            Ok(volume) => volume,
            // Made by a pass that was interrupted.
            Err(error) if error.code == 409 => {
                let key = ObjectKey::new(volumes, "", name);
                api.store.get_value(&key).map_err(|error| ApiError::from_store(error, volumes, name))?.ok_or(error)?
            }
            Err(error) => return Err(error),
        };
    bind(api, claim, &volume).await?;
    tell(api, claim, "Normal", "ProvisioningSucceeded", &format!("Successfully provisioned volume {name}")).await;
    Ok(())
}

/// Bytes with a binary suffix where they are whole, so that sizes read well.
fn as_binary(bytes: &str) -> String {
    match bytes.parse::<i64>() {
        Ok(bytes) if bytes > 0 && bytes % 1024 == 0 => format!("{}Ki", bytes / 1024),
        _ => bytes.to_string(),
    }
}

/// Deletes a released volume, data first.
pub(super) async fn delete(api: &Arc<Api>, volume: &Value) -> Result<(), ApiError> {
    let driver = object::text(volume, "/spec/csi/driver");
    let Some(socket) = api.config.csi_sockets.get(driver) else { return Ok(()) };
    if annotation(volume, PROVISIONED_BY) != driver {
        return Ok(());
    }
    let key = key_of(registry::core("persistentvolumes"), volume);
    if let Err(error) = csi::delete_volume(socket, object::text(volume, "/spec/csi/volumeHandle")).await {
        let message = error.to_string();
        record(
            api,
            "PersistentVolume",
            "v1",
            volume,
            Note { kind: "Warning", reason: "VolumeFailedDelete", message: &message, component: NAME },
        )
        .await;
        change(api, &key, |old| {
            let mut new = old.clone();
            new["status"] = json!({"phase": "Failed", "message": message});
            Ok(new)
        })
        .await?;
        return Err(ApiError::unavailable(format!("volume {}: {message}", key.name)));
    }
    match delete_object(api, &key, &DeleteOptions::default()).await {
        Err(error) if error.code != 404 => return Err(error),
        _ => {}
    }
    super::remove_finalizer(api, &key, VOLUME_PROTECTION).await
}
