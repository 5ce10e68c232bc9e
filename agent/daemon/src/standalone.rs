//! Ports of an agent without an API server: static pods work, whatever needs the API is told that there is none.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use orlop_agent_core::ports::{
    EventType, Events, ObjectChanges, ObjectRef, Objects, PortError, PortFuture, StatusSink, StatusUpdate,
};

/// No API.
pub(crate) struct Standalone;

fn absent<'a, T: Send + 'a>(what: &str, name: &str) -> PortFuture<'a, Result<T, PortError>> {
    let error = PortError::Invalid {
        what: format!("get {what} {name}"),
        message: "this node runs without an API server; static pods can't refer to API objects".to_owned(),
    };
    Box::pin(std::future::ready(Err(error)))
}

impl Objects for Standalone {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>> {
        absent("ConfigMap", name)
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>> {
        absent("Secret", name)
    }

    fn claim<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>> {
        absent("PersistentVolumeClaim", name)
    }

    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>> {
        absent("PersistentVolume", name)
    }

    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>> {
        Box::pin(std::future::ready(Err(PortError::NotFound { kind: "CSIDriver", name: name.to_owned() })))
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>> {
        absent("RuntimeClass", name)
    }

    fn services<'a>(&'a self, _: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn token<'a>(&'a self, _: &'a Pod, audience: &'a str, _: i64) -> PortFuture<'a, Result<String, PortError>> {
        absent("service-account token for", audience)
    }

    fn changes(&self) -> Box<dyn ObjectChanges> {
        Box::new(Standalone)
    }
}

impl ObjectChanges for Standalone {
    fn next(&mut self) -> PortFuture<'_, (String, String, String)> {
        Box::pin(std::future::pending())
    }
}

impl StatusSink for Standalone {
    fn publish(&self, update: StatusUpdate) {
        let phase = update.status.phase.as_deref().unwrap_or_default();
        tracing::debug!(namespace = %update.namespace, pod = %update.name, phase, "pod status");
    }
}

impl Events for Standalone {
    fn record(&self, object: ObjectRef, event_type: EventType, reason: &str, message: &str) {
        let (kind, namespace, name) = (object.kind, object.namespace, object.name);
        match event_type {
            EventType::Normal => tracing::info!(kind, namespace, name, reason, "{message}"),
            EventType::Warning => tracing::warn!(kind, namespace, name, reason, "{message}"),
        }
    }
}
