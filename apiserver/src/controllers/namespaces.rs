//! Namespaces: each has its account and certificate; one that goes away takes its content along.

use std::sync::Arc;

use serde_json::{Value, json};

use super::on_change;
use crate::admission::namespace_content;
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry;
use crate::rest::query::DeleteOptions;
use crate::rest::{Part, Update, create_object, delete_object, update_object};
use crate::storage::{ObjectKey, Range};

/// Puts into a namespace what every namespace has.
///
/// # Errors
/// When the store fails.
pub async fn fill_namespace(api: &Api, namespace: &str) -> Result<(), ApiError> {
    let user = User::server();
    for creation in namespace_content(&api.ca_pem, namespace, &user) {
        let key = ObjectKey::new(creation.resource, namespace, object::name(&creation.object));
        if creation.resource.plural == "configmaps" {
            correct_certificate(api, &key, &creation.object).await?;
        }
        if api.store.get(&key).map_err(|error| ApiError::from_store(error, key.resource, &key.name))?.is_some() {
            continue;
        }
        match create_object(api, creation).await {
            // Somebody was faster, or the namespace goes away.
            Err(error) if matches!(error.code, 403 | 404 | 409) => {}
            other => {
                other?;
            }
        }
    }
    Ok(())
}

/// A certificate that somebody changed, or that is of an older authority, is put right.
async fn correct_certificate(api: &Api, key: &ObjectKey, wanted: &Value) -> Result<(), ApiError> {
    let present = api.store.get_value(key).map_err(|error| ApiError::from_store(error, key.resource, &key.name))?;
    let Some(present) = present else { return Ok(()) };
    if present.get("data") == wanted.get("data") {
        return Ok(());
    }
    let user = User::server();
    let update = Update { key, part: Part::Anything, user: &user, dry_run: false, patched: false };
    let changed = update_object(api, update, |old| {
        let mut new = old.clone();
        object::copy_key(wanted, &mut new, "data");
        Ok(new)
    });
    changed.await.map(|_| ())
}

/// Keeps namespaces filled and takes those down that are deleted.
pub(super) async fn run(api: Arc<Api>) {
    let mut watched =
        vec![registry::core("namespaces"), registry::core("serviceaccounts"), registry::core("configmaps")];
    // What is left in a namespace may be anything.
    watched.extend(registry::storages().into_iter().filter(|resource| resource.namespaced && !resource.short_lived));
    on_change(&api, &watched, "namespaces", || pass(&api)).await;
}

async fn pass(api: &Arc<Api>) -> Result<(), ApiError> {
    let namespaces = registry::core("namespaces");
    let all = api.store.list_values(namespaces, None).map_err(|error| ApiError::from_store(error, namespaces, ""))?;
    for namespace in all {
        if object::is_terminating(&namespace) {
            take_down(api, &namespace).await?;
        } else {
            fill_namespace(api, object::name(&namespace)).await?;
        }
    }
    Ok(())
}

/// Deletes the content; when nothing is left, sets the namespace free.
async fn take_down(api: &Arc<Api>, namespace: &Value) -> Result<(), ApiError> {
    let name = object::name(namespace);
    let mut left = 0;
    for resource in registry::storages().into_iter().filter(|resource| resource.namespaced) {
        let range = Range { namespace: Some(name.into()), ..Range::default() };
        let page = api
            .store
            .list(resource, &range, usize::MAX, |_| true)
            .map_err(|error| ApiError::from_store(error, resource, ""))?;
        for item in page.items {
            let object: Value = serde_json::from_slice(&item.json).unwrap_or_default();
            let key = ObjectKey::new(resource, name, &item.name);
            if object::is_terminating(&object) {
                left += 1;
                continue;
            }
            match delete_object(api, &key, &DeleteOptions::default()).await {
                Ok(crate::rest::Deletion::Marked(_)) => left += 1,
                Ok(crate::rest::Deletion::Gone(_)) => {}
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left > 0 {
        tracing::debug!(namespace = name, left, "a namespace waits for its content");
        return Ok(());
    }
    let user = User::server();
    let key = ObjectKey::new(registry::core("namespaces"), "", name);
    let update = Update { key: &key, part: Part::Finalize, user: &user, dry_run: false, patched: false };
    let freed = update_object(api, update, |old| {
        let mut new = old.clone();
        let kept: Vec<&str> =
            object::strings(old, "/spec/finalizers").into_iter().filter(|name| *name != "kubernetes").collect();
        new["spec"] = if kept.is_empty() { json!({}) } else { json!({"finalizers": kept}) };
        Ok(new)
    });
    match freed.await {
        Err(error) if error.code == 404 => Ok(()),
        other => other.map(|_| ()),
    }
}
