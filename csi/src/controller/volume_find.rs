//! ValidateVolumeCapabilities, ListVolumes and GetCapacity.

use orlop_proto::csi::{
    GetCapacityRequest, GetCapacityResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, list_volumes_response,
    validate_volume_capabilities_response,
};
use tonic::Status;

use super::{ControllerService, blocking, known};
use crate::volume::{VolumeError, check_capability, check_parameters};

impl ControllerService {
    /// Tells whether a volume can be used in all the ways that are asked about.
    pub(super) fn volume_validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        known(&self.store, &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(VolumeError::Missing("volume_capabilities").into());
        }
        let wrong = request.volume_capabilities.iter().find_map(|wanted| check_capability(Some(wanted)).err());
        let wrong = wrong.or_else(|| check_parameters(request.parameters.keys()).err());
        if let Some(wrong) = wrong {
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message: wrong.to_string() });
        }
        let confirmed = validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    /// Lists volumes in the order in which they were made. The token is the serial of the last one listed, so that
    /// volumes that come and go between two pages neither hide others nor show twice.
    pub(super) fn volume_list(&self, request: &ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let after: u64 = match request.starting_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                Status::aborted(format!("starting_token {token:?} is not one of this driver's; list from the start"))
            })?,
        };
        let count =
            usize::try_from(request.max_entries).map_err(|_| Status::invalid_argument("max_entries is negative"))?;
        let left: Vec<_> = self.store.list().into_iter().filter(|volume| volume.serial > after).collect();
        let page = if count == 0 { left.len() } else { count.min(left.len()) };
        let next_token = match left.get(..page).and_then(<[_]>::last) {
            Some(last) if page < left.len() => last.serial.to_string(),
            _ => String::new(),
        };
        let entries = left
            .iter()
            .take(page)
            .map(|volume| list_volumes_response::Entry { volume: Some(self.shown(volume)), status: None });
        Ok(ListVolumesResponse { entries: entries.collect(), next_token })
    }

    /// Free bytes for volumes of the asked-for kind.
    pub(super) async fn capacity(&self, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
        let fit = request.volume_capabilities.iter().all(|wanted| check_capability(Some(wanted)).is_ok())
            && check_parameters(request.parameters.keys()).is_ok()
            && request.accessible_topology.as_ref().is_none_or(|topology| self.config.is_here(topology));
        let store = self.store.clone();
        let available = if fit { blocking(move || Ok(store.available_bytes()?)).await? } else { 0 };
        Ok(GetCapacityResponse { available_capacity: available, ..GetCapacityResponse::default() })
    }
}
