//! The Node service: bringing volumes to pods of this machine.

mod volume_publish;
mod volume_stage;
mod volume_stats;

use std::sync::Arc;

use orlop_proto::csi::node_server::Node;
use orlop_proto::csi::node_service_capability::{Rpc, Type, rpc};
use orlop_proto::csi::*;
use tonic::{Request, Response, Status};

use crate::busy::Busy;
use crate::config::CsiConfig;
use crate::place::{Place, PlaceError, Places};
use crate::store::Store;
use crate::volume::VolumeError;

/// The Node service.
#[derive(Clone, Debug)]
pub(crate) struct NodeService {
    pub(crate) config: Arc<CsiConfig>,
    pub(crate) store: Arc<Store>,
    pub(crate) places: Arc<Places>,
    pub(crate) busy: Busy,
}

/// What the driver can do on a node.
const CAPABILITIES: [rpc::Type; 3] =
    [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::SingleNodeMultiWriter];

impl From<PlaceError> for Status {
    fn from(error: PlaceError) -> Status {
        match &error {
            PlaceError::Outside { .. } => Status::invalid_argument(error.to_string()),
            PlaceError::Folder { .. } | PlaceError::Taken(_) => Status::failed_precondition(error.to_string()),
            PlaceError::Step { .. } => Status::internal(error.to_string()),
        }
    }
}

/// A path that must be given.
fn given(field: &'static str, path: &str) -> Result<(), Status> {
    if path.is_empty() { Err(VolumeError::Missing(field).into()) } else { Ok(()) }
}

/// A place whose folder must be there.
fn present(field: &'static str, path: &str, place: Option<Place>) -> Result<Place, Status> {
    place.ok_or_else(|| Status::failed_precondition(format!("{field}: the folder of {path:?} does not exist")))
}

fn not_served<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what} is not served by this driver")))
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.volume_stage(request.into_inner()).await.map(Response::new)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        self.volume_unstage(request.into_inner()).await.map(Response::new)
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        self.volume_publish(request.into_inner()).await.map(Response::new)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        self.volume_unpublish(request.into_inner()).await.map(Response::new)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        self.volume_stats(request.into_inner()).await.map(Response::new)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability =
            |kind: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.map(capability).into() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.config.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(self.config.topology()),
        }))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        not_served("NodeExpandVolume")
    }
}
