//! Tables of the small resources: config maps, secrets, namespaces, leases, and what has no columns of its own.

use serde_json::{Map, Value, json};

use super::column::{AGE, Layout, NAME, age, column, name};
use crate::object;

fn entries(object: &Value, key: &str) -> usize {
    object.get(key).and_then(Value::as_object).map_or(0, Map::len)
}

/// Name and age.
pub(super) static PLAIN: Layout =
    Layout { columns: &[NAME, AGE], cells: |object, now| vec![name(object), age(object, now)] };

/// Config maps.
pub(super) static CONFIG_MAPS: Layout = Layout {
    columns: &[NAME, column("Data", "How many keys it has, of text and of bytes."), AGE],
    cells: |object, now| {
        vec![name(object), json!(entries(object, "data") + entries(object, "binaryData")), age(object, now)]
    },
};

/// Secrets.
pub(super) static SECRETS: Layout = Layout {
    columns: &[
        NAME,
        column("Type", "What the secret is for; some types require keys."),
        column("Data", "How many keys it has."),
        AGE,
    ],
    cells: |object, now| {
        vec![name(object), json!(object::text(object, "/type")), json!(entries(object, "data")), age(object, now)]
    },
};

/// Namespaces.
pub(super) static NAMESPACES: Layout = Layout {
    columns: &[NAME, column("Status", "Active, or Terminating once its deletion was asked for."), AGE],
    cells: |object, now| vec![name(object), json!(object::text(object, "/status/phase")), age(object, now)],
};

/// Leases.
pub(super) static LEASES: Layout = Layout {
    columns: &[NAME, column("Holder", "Who holds the lease."), AGE],
    cells: |object, now| vec![name(object), json!(object::text(object, "/spec/holderIdentity")), age(object, now)],
};
