//! Tables of volumes, claims and CSI objects.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::column::{AGE, Layout, NAME, age, column, flag, name, text_or};
use crate::object;

/// Annotation that named the class before there was a field.
const OLD_CLASS: &str = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";

/// Volumes.
pub(super) static VOLUMES: Layout = Layout {
    columns: &[
        NAME,
        column("Capacity", "Size of the volume."),
        column("Access Modes", "How it can be mounted."),
        column("Reclaim Policy", "What becomes of it when its claim is gone."),
        column("Status", "Whether it is free, bound, released or failed."),
        column("Claim", "Claim that it is bound to."),
        column("StorageClass", "Class that it is of."),
        column("VolumeAttributesClass", "Class of its attributes."),
        column("Reason", "Why it failed."),
        AGE,
        column("VolumeMode", "File system or block device.").wide(),
    ],
    cells: volume_cells,
};

/// Claims.
pub(super) static CLAIMS: Layout = Layout {
    columns: &[
        NAME,
        column("Status", "Whether it is bound."),
        column("Volume", "Volume that it is bound to."),
        column("Capacity", "Size of that volume."),
        column("Access Modes", "How that volume can be mounted."),
        column("StorageClass", "Class that it asks for."),
        column("VolumeAttributesClass", "Class of attributes that it asks for."),
        AGE,
        column("VolumeMode", "File system or block device.").wide(),
    ],
    cells: claim_cells,
};

/// CSI nodes.
pub(super) static CSI_NODES: Layout = Layout {
    columns: &[NAME, column("Drivers", "How many CSI drivers are registered on the node.").integer(), AGE],
    cells: |object, now| vec![name(object), json!(object::items(object, "/spec/drivers").len()), age(object, now)],
};

/// CSI drivers.
pub(super) static CSI_DRIVERS: Layout = Layout {
    columns: &[
        NAME,
        column("AttachRequired", "Whether volumes are attached to a node before they are mounted.").boolean(),
        column("PodInfoOnMount", "Whether the driver is told of the pod.").boolean(),
        column("StorageCapacity", "Whether the driver tells how much room is left.").boolean(),
        column("TokenRequests", "Audiences of the tokens that the driver is given."),
        column("RequiresRepublish", "Whether volumes are published again from time to time.").boolean(),
        column("Modes", "Lives that volumes of the driver can have."),
        AGE,
    ],
    cells: driver_cells,
};

fn modes(object: &Value, pointer: &str) -> String {
    let given = object::strings(object, pointer);
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let short: Vec<&str> = known.into_iter().filter(|(mode, _)| given.contains(mode)).map(|(_, short)| short).collect();
    short.join(",")
}

fn phase(object: &Value) -> &str {
    if object::is_terminating(object) { "Terminating" } else { object::text(object, "/status/phase") }
}

fn class(object: &Value) -> &str {
    let old = object.pointer(OLD_CLASS).and_then(Value::as_str);
    old.unwrap_or_else(|| object::text(object, "/spec/storageClassName"))
}

fn volume_cells(volume: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match volume.pointer("/spec/claimRef") {
        Some(claim) => format!("{}/{}", object::text(claim, "/namespace"), object::text(claim, "/name")),
        None => String::new(),
    };
    vec![
        name(volume),
        json!(text_or(volume, "/spec/capacity/storage", "0")),
        json!(modes(volume, "/spec/accessModes")),
        json!(object::text(volume, "/spec/persistentVolumeReclaimPolicy")),
        json!(phase(volume)),
        json!(claim),
        json!(class(volume)),
        json!(text_or(volume, "/spec/volumeAttributesClassName", "<unset>")),
        json!(object::text(volume, "/status/reason")),
        age(volume, now),
        json!(text_or(volume, "/spec/volumeMode", "<unset>")),
    ]
}

fn claim_cells(claim: &Value, now: Timestamp) -> Vec<Value> {
    let volume = object::text(claim, "/spec/volumeName");
    let (mut capacity, mut access) = (String::new(), String::new());
    if !volume.is_empty() {
        capacity = text_or(claim, "/status/capacity/storage", "0");
        access = modes(claim, "/status/accessModes");
    }
    vec![
        name(claim),
        json!(phase(claim)),
        json!(volume),
        json!(capacity),
        json!(access),
        json!(class(claim)),
        json!(text_or(claim, "/spec/volumeAttributesClassName", "<unset>")),
        age(claim, now),
        json!(text_or(claim, "/spec/volumeMode", "<unset>")),
    ]
}

fn driver_cells(driver: &Value, now: Timestamp) -> Vec<Value> {
    let audiences: Vec<&str> =
        object::items(driver, "/spec/tokenRequests").iter().map(|token| object::text(token, "/audience")).collect();
    let lives = object::strings(driver, "/spec/volumeLifecycleModes").join(",");
    vec![
        name(driver),
        json!(flag(driver, "/spec/attachRequired", true)),
        json!(flag(driver, "/spec/podInfoOnMount", false)),
        json!(flag(driver, "/spec/storageCapacity", false)),
        json!(if audiences.is_empty() { "<unset>".into() } else { audiences.join(",") }),
        json!(flag(driver, "/spec/requiresRepublish", false)),
        json!(if lives.is_empty() { "<none>".into() } else { lives }),
        age(driver, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_and_volumes_in_rows() {
        let claim = json!({
            "metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "s", "volumeMode": "Filesystem"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]},
        });
        let expected = json!(["c", "Bound", "v", "1Gi", "RWO,RWOP", "s", "<unset>", "<unknown>", "Filesystem"]);
        assert_eq!(json!(claim_cells(&claim, Timestamp::UNIX_EPOCH)), expected);
        let volume = json!({
            "metadata": {"name": "v", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "n", "name": "c"}},
        });
        let expected =
            json!(["v", "1Gi", "ROX", "Delete", "Terminating", "n/c", "", "<unset>", "", "<unknown>", "<unset>"]);
        assert_eq!(json!(volume_cells(&volume, Timestamp::UNIX_EPOCH)), expected);
    }
}
