//! Claims get volumes from a CSI driver, and the driver gets them back.

#[path = "support/server.rs"]
mod support;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use orlop_proto::csi::controller_server::{Controller, ControllerServer};
use orlop_proto::csi::*;
use serde_json::json;
use support::Server;
use tonic::{Request, Response, Status};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const DRIVER: &str = "test.csi.orlop.dev";

/// A driver that only remembers.
#[derive(Clone, Default)]
struct Driver(Arc<Mutex<Vec<String>>>);

macro_rules! unserved {
    ($($name:ident: $request:ident => $response:ident,)*) => {$(
        // The form that `async_trait` gives a method: it does not see what a macro makes.
        fn $name<'s, 'f>(&'s self, _: Request<$request>) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'f>>
        where
            's: 'f,
            Self: 'f,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        }
    )*};
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        if request.parameters.contains_key("refuse") {
            return Err(Status::resource_exhausted("the pool is full"));
        }
        let id = format!("id-{}", request.name);
        let mut volumes = self.0.lock().unwrap();
        if !volumes.contains(&id) {
            volumes.push(id.clone());
        }
        let capacity_bytes = request.capacity_range.unwrap().required_bytes;
        let volume = Volume {
            volume_id: id,
            capacity_bytes,
            volume_context: [("k".to_string(), "v".to_string())].into(),
            ..Volume::default()
        };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        self.0.lock().unwrap().retain(|other| *other != id);
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    unserved! {
        controller_expand_volume: ControllerExpandVolumeRequest => ControllerExpandVolumeResponse,
        controller_get_capabilities: ControllerGetCapabilitiesRequest => ControllerGetCapabilitiesResponse,
        controller_get_volume: ControllerGetVolumeRequest => ControllerGetVolumeResponse,
        controller_modify_volume: ControllerModifyVolumeRequest => ControllerModifyVolumeResponse,
        controller_publish_volume: ControllerPublishVolumeRequest => ControllerPublishVolumeResponse,
        controller_unpublish_volume: ControllerUnpublishVolumeRequest => ControllerUnpublishVolumeResponse,
        create_snapshot: CreateSnapshotRequest => CreateSnapshotResponse,
        delete_snapshot: DeleteSnapshotRequest => DeleteSnapshotResponse,
        get_capacity: GetCapacityRequest => GetCapacityResponse,
        get_snapshot: GetSnapshotRequest => GetSnapshotResponse,
        list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse,
        list_volumes: ListVolumesRequest => ListVolumesResponse,
        validate_volume_capabilities: ValidateVolumeCapabilitiesRequest => ValidateVolumeCapabilitiesResponse,
    }
}

async fn start() -> (Server, Driver) {
    let driver = Driver::default();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let service = ControllerServer::new(driver.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)),
    );
    let server = Server::start_in(dir, BTreeMap::from([(DRIVER.to_string(), socket)])).await;
    for (name, mode, parameters) in [
        ("now", "Immediate", json!({})),
        ("late", "WaitForFirstConsumer", json!({})),
        ("full", "Immediate", json!({"refuse": "1"})),
    ] {
        let class = json!({"metadata": {"name": name}, "provisioner": DRIVER, "volumeBindingMode": mode, "parameters": parameters});
        assert_eq!(server.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.0, 201);
    }
    (server, driver)
}

async fn claim(server: &Server, name: &str, class: &str) {
    let claim = json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(server.post(CLAIMS, &claim).await.0, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_provisioned_bound_and_deleted() {
    let (server, driver) = start().await;
    claim(&server, "c", "now").await;
    let bound = server.wait_for(&format!("{CLAIMS}/c"), "bound", |_, claim| claim["status"]["phase"] == "Bound").await;
    assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
    let path = format!("/api/v1/persistentvolumes/{}", bound["spec"]["volumeName"].as_str().unwrap());
    let (_, volume) = server.get(&path).await;
    assert_eq!(volume["spec"]["csi"]["volumeAttributes"]["k"], "v");
    assert_eq!(volume["status"]["phase"], "Bound");
    assert_eq!(driver.0.lock().unwrap().len(), 1);
    server.delete(&format!("{CLAIMS}/c")).await;
    server.wait_for(&format!("{CLAIMS}/c"), "claim gone", |code, _| code == 404).await;
    server.wait_for(&path, "volume gone", |code, _| code == 404).await;
    assert!(driver.0.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_claim_waits_for_its_pod_and_is_kept_while_used() {
    let (server, _driver) = start().await;
    claim(&server, "c", "late").await;
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let node = json!({"metadata": {"name": "n1"}, "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}});
    server.post("/api/v1/nodes", &node).await;
    let events = "/api/v1/namespaces/default/events?fieldSelector=reason=WaitForFirstConsumer";
    server.wait_for(events, "told why", |_, list| !list["items"].as_array().unwrap().is_empty()).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
    }});
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(server.post(pods, &pod).await.0, 201);
    server.wait_for(&format!("{pods}/p"), "bound to the node", |_, pod| pod["spec"]["nodeName"] == "n1").await;
    let (_, bound) = server.get(&format!("{CLAIMS}/c")).await;
    assert_eq!(bound["status"]["phase"], "Bound", "the volume comes before the node");
    server.delete(&format!("{CLAIMS}/c")).await;
    assert_eq!(server.get(&format!("{CLAIMS}/c")).await.0, 200, "a pod uses it");
    server.delete(&format!("{pods}/p?gracePeriodSeconds=0")).await;
    server.wait_for(&format!("{CLAIMS}/c"), "claim gone", |code, _| code == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told() {
    let (server, _driver) = start().await;
    claim(&server, "c", "full").await;
    let events = "/api/v1/namespaces/default/events?fieldSelector=reason=ProvisioningFailed";
    let list = server.wait_for(events, "told why", |_, list| !list["items"].as_array().unwrap().is_empty()).await;
    assert!(list["items"][0]["message"].as_str().unwrap().contains("the pool is full"), "{list}");
    let (_, pending) = server.get(&format!("{CLAIMS}/c")).await;
    assert_eq!(pending["status"]["phase"], "Pending");
}
