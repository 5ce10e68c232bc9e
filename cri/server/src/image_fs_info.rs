//! `ImageFsInfo`: what images take, from sizes measured when they were unpacked; nothing is walked.

use orlop_image::Images;
use orlop_proto::cri;

/// Images and writable layers share one file system.
pub(crate) fn fs_info(images: &Images) -> cri::ImageFsInfoResponse {
    let info = images.fs_info();
    let usage = cri::FilesystemUsage {
        timestamp: crate::server::now(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: info.used_bytes }),
        inodes_used: Some(cri::UInt64Value { value: info.inodes_used }),
    };
    cri::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }
}
