//! NodeStageVolume and NodeUnstageVolume: the volume once for this node.

use orlop_kernel::mount::Attributes;
use orlop_proto::csi::{
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
};
use tonic::Status;

use super::{NodeService, given, present};
use crate::controller::{blocking, known};
use crate::volume::{VolumeError, check_capability};

/// Name of the field in errors.
const FIELD: &str = "staging_target_path";

impl NodeService {
    pub(super) async fn volume_stage(
        &self,
        request: NodeStageVolumeRequest,
    ) -> Result<NodeStageVolumeResponse, Status> {
        given("volume_id", &request.volume_id)?;
        given(FIELD, &request.staging_target_path)?;
        check_capability(request.volume_capability.as_ref())?;
        let volume = known(&self.store, &request.volume_id)?;
        let guard = self.busy.take(&volume.id)?;
        let (store, places) = (self.store.clone(), self.places.clone());
        blocking(move || {
            let _held = guard;
            let path = &request.staging_target_path;
            let place = present(FIELD, path, places.open(FIELD, path)?)?;
            let data = store.data(&volume.id);
            if !place.shows(&data)? {
                place.mount(&data, Attributes::empty())?;
            }
            Ok(NodeStageVolumeResponse {})
        })
        .await
    }

    /// Takes the staged volume away. A volume that is gone is taken away all the same: its deletion may have come
    /// first.
    pub(super) async fn volume_unstage(
        &self,
        request: NodeUnstageVolumeRequest,
    ) -> Result<NodeUnstageVolumeResponse, Status> {
        if request.volume_id.is_empty() {
            return Err(VolumeError::Missing("volume_id").into());
        }
        given(FIELD, &request.staging_target_path)?;
        let guard = self.busy.take(&request.volume_id)?;
        let places = self.places.clone();
        blocking(move || {
            let _held = guard;
            if let Some(place) = places.open(FIELD, &request.staging_target_path)? {
                // The folder itself belongs to the orchestrator.
                place.unmount()?;
            }
            Ok(NodeUnstageVolumeResponse {})
        })
        .await
    }
}
