//! The Controller service: making, deleting and finding volumes.

mod volume_create;
mod volume_find;

use std::sync::Arc;

use orlop_proto::csi::controller_server::Controller;
use orlop_proto::csi::controller_service_capability::{Rpc, Type, rpc};
use orlop_proto::csi::*;
use tonic::{Request, Response, Status};

use crate::busy::Busy;
use crate::config::CsiConfig;
use crate::record::VolumeRecord;
use crate::store::{Store, StoreError};
use crate::volume::VolumeError;

/// The Controller service.
#[derive(Clone, Debug)]
pub(crate) struct ControllerService {
    pub(crate) config: Arc<CsiConfig>,
    pub(crate) store: Arc<Store>,
    pub(crate) busy: Busy,
}

/// What the driver's controller can do.
const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::GetVolume,
    rpc::Type::SingleNodeMultiWriter,
];

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Status {
        match error {
            VolumeError::Range { .. } => Status::out_of_range(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        }
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Status {
        match &error {
            StoreError::Full => Status::resource_exhausted(error.to_string()),
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Status::resource_exhausted(error.to_string())
            }
            _ => Status::internal(error.to_string()),
        }
    }
}

/// Does file work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

/// A volume that must be there.
pub(crate) fn known(store: &Store, id: &str) -> Result<VolumeRecord, Status> {
    if id.is_empty() {
        return Err(VolumeError::Missing("volume_id").into());
    }
    store.get(id).ok_or_else(|| Status::not_found(format!("there is no volume {id:?}")))
}

impl ControllerService {
    /// The volume as CSI tells of it.
    fn shown(&self, volume: &VolumeRecord) -> Volume {
        Volume {
            capacity_bytes: volume.capacity_bytes,
            volume_id: volume.id.clone(),
            accessible_topology: vec![self.config.topology()],
            ..Volume::default()
        }
    }
}

fn not_served<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what} is not served by this driver")))
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        self.volume_create(request.into_inner()).await.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.volume_delete(request.into_inner()).await.map(Response::new)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        self.volume_validate(request.into_inner()).map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        self.volume_list(&request.into_inner()).map(Response::new)
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        self.capacity(request.into_inner()).await.map(Response::new)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability =
            |kind: rpc::Type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.map(capability).into() }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let volume = known(&self.store, &request.into_inner().volume_id)?;
        let status = controller_get_volume_response::VolumeStatus::default();
        Ok(Response::new(ControllerGetVolumeResponse { volume: Some(self.shown(&volume)), status: Some(status) }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        not_served("ControllerPublishVolume")
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        not_served("ControllerUnpublishVolume")
    }

    async fn create_snapshot(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        not_served("CreateSnapshot")
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        not_served("DeleteSnapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        not_served("ListSnapshots")
    }

    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Result<Response<GetSnapshotResponse>, Status> {
        not_served("GetSnapshot")
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        not_served("ControllerExpandVolume")
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        not_served("ControllerModifyVolume")
    }
}
