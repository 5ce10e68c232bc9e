//! NodePublishVolume and NodeUnpublishVolume: the volume for one pod.

use orlop_proto::csi::{
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
};
use tonic::Status;

use super::{NodeService, given, present};
use crate::controller::{blocking, known};
use crate::place::Places;
use crate::record::Publication;
use crate::store::Store;
use crate::volume::{Access, check_capability};

/// Name of the field in errors.
const FIELD: &str = "target_path";

impl NodeService {
    pub(super) async fn volume_publish(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Status> {
        given("volume_id", &request.volume_id)?;
        given(FIELD, &request.target_path)?;
        let access = check_capability(request.volume_capability.as_ref())?;
        let volume = known(&self.store, &request.volume_id)?;
        if request.staging_target_path.is_empty() {
            return Err(Status::failed_precondition("staging_target_path is missing: the volume is staged first"));
        }
        let guard = self.busy.take(&volume.id)?;
        let (store, places) = (self.store.clone(), self.places.clone());
        blocking(move || {
            let _held = guard;
            publish(&store, &places, &request, &access).map(|()| NodePublishVolumeResponse {})
        })
        .await
    }

    /// Takes the volume from a pod. A volume that is gone is taken away all the same.
    pub(super) async fn volume_unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        given("volume_id", &request.volume_id)?;
        given(FIELD, &request.target_path)?;
        let guard = self.busy.take(&request.volume_id)?;
        let (store, places) = (self.store.clone(), self.places.clone());
        blocking(move || {
            let _held = guard;
            let Some(place) = places.open(FIELD, &request.target_path)? else {
                return forget(&store, &places, &request);
            };
            place.unmount()?;
            place.remove()?;
            forget(&store, &places, &request)
        })
        .await
    }
}

fn publish(store: &Store, places: &Places, request: &NodePublishVolumeRequest, access: &Access) -> Result<(), Status> {
    let (id, data) = (&request.volume_id, store.data(&request.volume_id));
    let staging = places.open("staging_target_path", &request.staging_target_path)?;
    let staged = staging.map(|place| place.shows(&data)).transpose()?.unwrap_or(false);
    if !staged {
        return Err(Status::failed_precondition(format!(
            "volume {id} is not staged at {:?}; stage it first",
            request.staging_target_path
        )));
    }
    let place = present(FIELD, &request.target_path, places.open(FIELD, &request.target_path)?)?;
    let wanted = Publication {
        target: place.path.clone(),
        read_only: request.readonly,
        mode: access.mode,
        options: access.options.clone(),
    };
    let mut publications = store.published(id);
    let shown = place.shows(&data)?;
    if let Some(known) = publications.iter().find(|known| known.target == wanted.target)
        && shown
    {
        if *known == wanted {
            return Ok(());
        }
        return Err(Status::already_exists(format!(
            "volume {id} is published at {} in another way",
            wanted.target.display()
        )));
    }
    if let Some(other) = publications.iter().find(|other| other.target != wanted.target)
        && (access.single || is_single(other))
    {
        return Err(Status::failed_precondition(format!(
            "volume {id} may have one user only (ReadWriteOncePod) and is in use at {}",
            other.target.display()
        )));
    }
    // Noted before it is done: after a crash a note without a mount is no harm, a mount without a note is.
    publications.retain(|known| known.target != wanted.target);
    publications.push(wanted);
    store.note(id, publications)?;
    if shown {
        return Ok(());
    }
    Ok(place.mount(&data, access.attributes(request.readonly))?)
}

/// Whether a publication was made for a single writer.
fn is_single(publication: &Publication) -> bool {
    use orlop_proto::csi::volume_capability::access_mode::Mode;
    publication.mode == i32::from(Mode::SingleNodeSingleWriter)
}

fn forget(
    store: &Store,
    places: &Places,
    request: &NodeUnpublishVolumeRequest,
) -> Result<NodeUnpublishVolumeResponse, Status> {
    let below = places.below(FIELD, &request.target_path)?;
    let mut publications = store.published(&request.volume_id);
    publications.retain(|known| !known.target.ends_with(&below));
    store.note(&request.volume_id, publications)?;
    Ok(NodeUnpublishVolumeResponse {})
}
