//! Events that the server itself writes; the same one again is counted.

use serde_json::{Value, json};

use crate::api::Api;
use crate::auth::User;
use crate::object;
use crate::registry;
use crate::rest::{Creation, Part, Update, create_object, update_object};
use crate::storage::ObjectKey;

/// What is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note<'a> {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// Machine-readable reason.
    pub reason: &'static str,
    /// For people.
    pub message: &'a str,
    /// Which part of the server tells it.
    pub component: &'static str,
}

/// Writes an event about an object; a failure is only logged.
pub(super) async fn record(api: &Api, about_kind: &str, about_version: &str, about: &Value, note: Note<'_>) {
    let user = User::server();
    let namespace = Some(object::namespace(about)).filter(|name| !name.is_empty()).unwrap_or("default");
    // One name for one message, so that a repetition finds it.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in [object::uid(about), note.reason, note.message].join("\0").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let name = format!("{}.{hash:016x}", object::name(about));
    let resource = registry::core("events");
    let now = object::now();
    let event = json!({
        "metadata": {"name": name},
        "involvedObject": {
            "kind": about_kind, "apiVersion": about_version, "namespace": object::namespace(about), "name": object::name(about),
            "uid": object::uid(about), "resourceVersion": object::text(about, "/metadata/resourceVersion"),
        },
        "reason": note.reason, "message": note.message, "type": note.kind, "source": {"component": note.component},
        "reportingComponent": note.component, "reportingInstance": "", "count": 1, "firstTimestamp": now, "lastTimestamp": now,
    });
    let made = create_object(api, Creation { resource, namespace, object: event, user: &user, dry_run: false }).await;
    let result = match made {
        Err(error) if error.code == 409 => {
            let key = ObjectKey::new(resource, namespace, &name);
            let update = Update { key: &key, part: Part::Anything, user: &user, dry_run: false, patched: false };
            update_object(api, update, |old| {
                let mut new = old.clone();
                new["count"] = json!(object::number(old, "/count").unwrap_or(1) + 1);
                new["lastTimestamp"] = json!(now);
                Ok(new)
            })
            .await
        }
        other => other,
    };
    if let Err(error) = result {
        tracing::debug!(%error, reason = note.reason, "an event could not be written");
    }
}
