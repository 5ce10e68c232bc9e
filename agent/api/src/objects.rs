//! The objects that pods refer to: the `Objects` port.

mod changes;
pub(crate) mod fetched;
pub mod references;
mod watched;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::api::{Api, ListParams};
use orlop_agent_core::ports::{ObjectChanges, Objects, PodSet, PortError, PortFuture};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use changes::ChangeBoard;
use fetched::FetchedObjects;
use references::References;
use watched::WatchedObjects;

use crate::client::{ApiClients, REQUEST_DEADLINE, within};
use crate::tokens::TokenCache;

/// How long an answer about a claim or a volume is believed: a claim that waits to be bound is asked for often.
const CLAIM_LIFE: Duration = Duration::from_secs(1);
/// How long the services of a namespace are believed.
const SERVICES_LIFE: Duration = Duration::from_secs(2);
/// How long a CSIDriver or RuntimeClass is believed: both hardly ever change.
const CLASS_LIFE: Duration = Duration::from_secs(10);
/// How often objects that nobody uses any more are looked for when no pod changes.
const RETIRE_INTERVAL: Duration = Duration::from_secs(60);

/// The `Objects` port on the API server.
pub struct ApiObjects {
    clients: ApiClients,
    changes: Arc<ChangeBoard>,
    config_maps: WatchedObjects<ConfigMap>,
    secrets: WatchedObjects<Secret>,
    claims: FetchedObjects<Arc<PersistentVolumeClaim>>,
    volumes: FetchedObjects<Arc<PersistentVolume>>,
    drivers: FetchedObjects<Arc<CSIDriver>>,
    attachments: FetchedObjects<Arc<VolumeAttachment>>,
    runtime_classes: FetchedObjects<Arc<RuntimeClass>>,
    services: FetchedObjects<Vec<Arc<Service>>>,
    tokens: TokenCache,
}

impl ApiObjects {
    /// Starts the port. `pods` tells which objects are in use; what no pod of it refers to is forgotten.
    pub fn start(clients: ApiClients, pods: watch::Receiver<Arc<PodSet>>, cancel: CancellationToken) -> Arc<Self> {
        let changes = Arc::new(ChangeBoard::default());
        let immutable_map = |map: &ConfigMap| map.immutable == Some(true);
        let immutable_secret = |secret: &Secret| secret.immutable == Some(true);
        let objects = Arc::new(Self {
            config_maps: WatchedObjects::new("ConfigMap", clients.clone(), changes.clone(), immutable_map),
            secrets: WatchedObjects::new("Secret", clients.clone(), changes.clone(), immutable_secret),
            claims: FetchedObjects::new(CLAIM_LIFE),
            volumes: FetchedObjects::new(CLAIM_LIFE),
            drivers: FetchedObjects::new(CLASS_LIFE),
            attachments: FetchedObjects::new(CLAIM_LIFE),
            runtime_classes: FetchedObjects::new(CLASS_LIFE),
            services: FetchedObjects::new(SERVICES_LIFE),
            tokens: TokenCache::new(clients.clone()),
            changes,
            clients,
        });
        tokio::spawn(retire_unused(Arc::downgrade(&objects), pods, cancel));
        objects
    }

    async fn fetch<K>(&self, api: Api<K>, kind: &'static str, full_name: &str, name: &str) -> Result<Arc<K>, PortError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let what = format!("get {kind} {full_name}");
        within(&what, REQUEST_DEADLINE, api.get(name))
            .await
            .map(Arc::new)
            .map_err(|error| error.to_port(kind, full_name))
    }

    async fn fetch_services(&self, namespace: &str) -> Result<Vec<Arc<Service>>, PortError> {
        let api: Api<Service> = Api::namespaced(self.clients.requests.clone(), namespace);
        let what = format!("list services of namespace {namespace}");
        let list = within(&what, REQUEST_DEADLINE, api.list(&ListParams::default()))
            .await
            .map_err(|error| error.to_port("Service", namespace))?;
        let mut services: Vec<Arc<Service>> = list.items.into_iter().map(Arc::new).collect();
        if namespace != "default" {
            let api: Api<Service> = Api::namespaced(self.clients.requests.clone(), "default");
            match self.fetch(api, "Service", "default/kubernetes", "kubernetes").await {
                Ok(service) => services.push(service),
                Err(PortError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(services)
    }
}

/// Forgets watched objects and tokens of pods that are gone.
async fn retire_unused(
    objects: std::sync::Weak<ApiObjects>,
    mut pods: watch::Receiver<Arc<PodSet>>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = tokio::time::timeout(RETIRE_INTERVAL, pods.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
        }
        let set = pods.borrow_and_update().clone();
        let Some(objects) = objects.upgrade() else { return };
        if !set.synced {
            continue;
        }
        let mut referenced = References::default();
        for pod in set.pods.values() {
            referenced.add(pod);
        }
        objects.config_maps.retire(&referenced.config_maps);
        objects.secrets.retire(&referenced.secrets);
        objects.tokens.retire(&set);
    }
}

impl Objects for ApiObjects {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>> {
        Box::pin(self.config_maps.get(namespace, name))
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>> {
        Box::pin(self.secrets.get(namespace, name))
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>> {
        Box::pin(async move {
            let key = format!("{namespace}/{name}");
            let api = Api::namespaced(self.clients.requests.clone(), namespace);
            self.claims.get(&key, || self.fetch(api, "PersistentVolumeClaim", &key, name)).await
        })
    }

    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>> {
        Box::pin(async move {
            let api = Api::all(self.clients.requests.clone());
            self.volumes.get(name, || self.fetch(api, "PersistentVolume", name, name)).await
        })
    }

    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>> {
        Box::pin(async move {
            let api = Api::all(self.clients.requests.clone());
            self.drivers.get(name, || self.fetch(api, "CSIDriver", name, name)).await
        })
    }

    fn volume_attachment<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<VolumeAttachment>, PortError>> {
        Box::pin(async move {
            let api = Api::all(self.clients.requests.clone());
            self.attachments.get(name, || self.fetch(api, "VolumeAttachment", name, name)).await
        })
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>> {
        Box::pin(async move {
            let api = Api::all(self.clients.requests.clone());
            self.runtime_classes.get(name, || self.fetch(api, "RuntimeClass", name, name)).await
        })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>> {
        Box::pin(self.services.get(namespace, move || self.fetch_services(namespace)))
    }

    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        expiration_seconds: i64,
    ) -> PortFuture<'a, Result<String, PortError>> {
        Box::pin(self.tokens.token(pod, audience, expiration_seconds))
    }

    fn changes(&self) -> Box<dyn ObjectChanges> {
        self.changes.listen()
    }
}
