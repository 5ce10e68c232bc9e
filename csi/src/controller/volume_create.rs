//! CreateVolume and DeleteVolume.

use orlop_proto::csi::{CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse};
use tonic::Status;

use super::{ControllerService, blocking};
use crate::volume::{
    VolumeError, check_capability, check_name, check_parameters, fits, is_volume_id, new_size, volume_id,
};

impl ControllerService {
    /// Makes a volume, or finds the one that was made by that name.
    pub(super) async fn volume_create(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        check_name(&request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(VolumeError::Missing("volume_capabilities").into());
        }
        for capability in &request.volume_capabilities {
            check_capability(Some(capability))?;
        }
        check_parameters(request.parameters.keys().chain(request.mutable_parameters.keys()))?;
        if request.volume_content_source.is_some() {
            return Err(Status::invalid_argument(
                "volume_content_source: volumes can't be made from snapshots or other volumes by this driver",
            ));
        }
        let bytes = new_size(request.capacity_range.as_ref())?;
        if let Some(wanted) = &request.accessibility_requirements
            && !wanted.requisite.is_empty()
            && !wanted.requisite.iter().any(|topology| self.config.is_here(topology))
        {
            return Err(Status::resource_exhausted(format!(
                "accessibility_requirements: the volume is wanted elsewhere; this driver makes volumes on node {:?} only",
                self.config.node_id
            )));
        }
        let id = volume_id(&request.name);
        let guard = self.busy.take(&id)?;
        let store = self.store.clone();
        let volume = blocking(move || {
            let _held = guard;
            if let Some(volume) = store.get(&id) {
                if fits(volume.capacity_bytes, request.capacity_range.as_ref()) {
                    return Ok(volume);
                }
                return Err(Status::already_exists(format!(
                    "volume {:?} exists with {} bytes, which is not what is asked for",
                    volume.name, volume.capacity_bytes
                )));
            }
            let available = store.available_bytes()?;
            if bytes > available {
                return Err(Status::out_of_range(format!(
                    "{bytes} bytes are asked for and {available} are free on this node; ask for less or make room"
                )));
            }
            Ok(store.create(&id, &request.name, bytes)?)
        })
        .await?;
        tracing::info!(volume = volume.id, name = volume.name, bytes = volume.capacity_bytes, "volume made");
        Ok(CreateVolumeResponse { volume: Some(self.shown(&volume)) })
    }

    /// Deletes a volume with its data; one that is gone is no error.
    pub(super) async fn volume_delete(&self, request: DeleteVolumeRequest) -> Result<DeleteVolumeResponse, Status> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(VolumeError::Missing("volume_id").into());
        }
        if !is_volume_id(&id) {
            // Not one of ours, so it is not there.
            return Ok(DeleteVolumeResponse {});
        }
        let guard = self.busy.take(&id)?;
        let store = self.store.clone();
        blocking(move || {
            let _held = guard;
            if let Some(used) = store.published(&id).first() {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is in use at {}; it is deleted when no pod has it",
                    used.target.display()
                )));
            }
            store.delete(&id)?;
            tracing::info!(volume = id, "volume deleted");
            Ok(DeleteVolumeResponse {})
        })
        .await
    }
}
