//! Tables of classes: of storage, of runtimes, of priorities.

use serde_json::{Value, json};

use super::column::{AGE, Layout, NAME, age, column, flag, name, text_or};
use crate::object;

/// Annotations that mark the class of claims that name none.
const DEFAULT_MARKS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Storage classes.
pub(super) static STORAGE_CLASSES: Layout = Layout {
    columns: &[
        NAME,
        column("Provisioner", "Driver that makes its volumes."),
        column("ReclaimPolicy", "What becomes of a volume when its claim is gone."),
        column("VolumeBindingMode", "Whether a volume is made at once or for the first pod."),
        column("AllowVolumeExpansion", "Whether its claims may grow."),
        AGE,
    ],
    cells: |object, now| {
        let marks = object.pointer("/metadata/annotations");
        let is_default = DEFAULT_MARKS
            .iter()
            .any(|mark| marks.and_then(|marks| marks.get(mark)).and_then(Value::as_str) == Some("true"));
        vec![
            if is_default { json!(format!("{} (default)", object::name(object))) } else { name(object) },
            json!(object::text(object, "/provisioner")),
            json!(text_or(object, "/reclaimPolicy", "Delete")),
            json!(text_or(object, "/volumeBindingMode", "Immediate")),
            json!(flag(object, "/allowVolumeExpansion", false)),
            age(object, now),
        ]
    },
};

/// Runtime classes.
pub(super) static RUNTIME_CLASSES: Layout = Layout {
    columns: &[NAME, column("Handler", "Name by which the container runtime knows the class."), AGE],
    cells: |object, now| vec![name(object), json!(object::text(object, "/handler")), age(object, now)],
};

/// Priority classes.
pub(super) static PRIORITY_CLASSES: Layout = Layout {
    columns: &[
        NAME,
        column("Value", "Priority of its pods; higher ones go first.").integer(),
        column("Global-Default", "Whether pods that name no class are of this one.").boolean(),
        AGE,
        column("PreemptionPolicy", "Whether its pods may take the place of others."),
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(object::number(object, "/value").unwrap_or(0)),
            json!(flag(object, "/globalDefault", false)),
            age(object, now),
            json!(object::text(object, "/preemptionPolicy")),
        ]
    },
};
