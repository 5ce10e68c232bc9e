//! NodeGetVolumeStats: what is used and free where the volume is.

use orlop_proto::csi::volume_usage::Unit;
use orlop_proto::csi::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, VolumeUsage};
use tonic::Status;

use super::{NodeService, given};
use crate::controller::{blocking, known};

impl NodeService {
    /// Bytes and inodes of the file system that the volume shares with others.
    pub(super) async fn volume_stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        given("volume_id", &request.volume_id)?;
        given("volume_path", &request.volume_path)?;
        let volume = known(&self.store, &request.volume_id)?;
        let (store, places) = (self.store.clone(), self.places.clone());
        blocking(move || {
            let data = store.data(&volume.id);
            let place = places.open("volume_path", &request.volume_path).ok().flatten();
            if !place.map(|place| place.shows(&data)).transpose()?.unwrap_or(false) {
                return Err(Status::not_found(format!("volume {} is not at {:?}", volume.id, request.volume_path)));
            }
            let stat = rustix::fs::statvfs(&data).map_err(|errno| Status::internal(format!("{data:?}: {errno}")))?;
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let usage = |total: u64, free: u64, available: u64, unit: Unit| VolumeUsage {
                total: number(total),
                used: number(total.saturating_sub(free)),
                available: number(available),
                unit: unit.into(),
            };
            let size = stat.f_frsize;
            let bytes = usage(stat.f_blocks * size, stat.f_bfree * size, stat.f_bavail * size, Unit::Bytes);
            let inodes = usage(stat.f_files, stat.f_ffree, stat.f_favail, Unit::Inodes);
            Ok(NodeGetVolumeStatsResponse { usage: vec![bytes, inodes], volume_condition: None })
        })
        .await
    }
}
