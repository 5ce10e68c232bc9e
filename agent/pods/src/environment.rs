//! The environment of a container, with the objects that it refers to fetched side by side.

use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers::{self, SpecContainer};
use orlop_agent_core::downward;
use orlop_agent_core::env::{EnvObjects, FieldSources, env_references, resolve_env, service_env};
use orlop_agent_core::ports::PortError;

use crate::shared::Shared;

/// The environment of a container. `pod` has its current status, for the fields of it.
///
/// # Errors
/// In the words of `CreateContainerConfigError`.
pub(crate) async fn environment(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
) -> Result<Vec<(String, String)>, String> {
    let namespace = containers::namespace(pod);
    let (objects, services) =
        tokio::join!(fetch_objects(shared, namespace, container), fetch_services(shared, pod, namespace));
    let (objects, services) = (objects?, services?);
    let allocatable = shared.ports.node.allocatable();
    let sources = FieldSources {
        field: &|selector| downward::field(pod, &selector.field_path),
        resource: &|selector| downward::resource(pod, container.name(), selector, &allocatable),
    };
    resolve_env(&container.container, namespace, &services, &objects, &sources).map_err(|error| error.to_string())
}

/// What does not exist is `None`; what can't be asked for just now is an error.
fn known<T>(result: Result<Arc<T>, PortError>) -> Result<Option<Arc<T>>, String> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(PortError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn fetch_objects(shared: &Shared, namespace: &str, container: &SpecContainer<'_>) -> Result<EnvObjects, String> {
    let (config_maps, secrets) = env_references(&container.container);
    let objects = &shared.ports.objects;
    let config_maps = join_all(config_maps.into_iter().map(|name| async move {
        let object = known(objects.config_map(namespace, &name).await);
        object.map(|object| (name, object))
    }));
    let secrets = try_join_all(secrets.into_iter().map(|name| async move {
        let object = known(objects.secret(namespace, &name).await);
        object.map(|object| (name, object))
    }));
    let (config_maps, secrets) = tokio::join!(config_maps, secrets);
    let config_maps: Result<_, String> = config_maps.into_iter().collect();
    Ok(EnvObjects { config_maps: config_maps?, secrets: secrets?.into_iter().collect() })
}

async fn fetch_services(
    shared: &Shared,
    pod: &Pod,
    namespace: &str,
) -> Result<std::collections::BTreeMap<String, String>, String> {
    let links = containers::spec(pod).and_then(|spec| spec.enable_service_links).unwrap_or(true);
    match shared.ports.objects.services(namespace).await {
        Ok(services) => Ok(service_env(namespace, links, &services)),
        // A static pod must start without the API.
        Err(_) if containers::is_static(pod) => Ok(Default::default()),
        Err(error) => Err(format!("services have not yet been read at least once, cannot construct envvars: {error}")),
    }
}
