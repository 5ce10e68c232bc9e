//! `ImageFsInfo`: what images and writable layers take. Images were measured when they were unpacked, writable layers when
//! somebody last asked for a container's stats; nothing is walked here.

use orlop_image::Images;
use orlop_proto::cri;

use crate::server::Server;

/// Images and writable layers share one file system. Without a server there are no containers.
pub(crate) fn fs_info(images: &Images, server: Option<&Server>) -> cri::ImageFsInfoResponse {
    let info = images.fs_info();
    let usage = |bytes, inodes| cri::FilesystemUsage {
        timestamp: crate::server::now(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: bytes }),
        inodes_used: Some(cri::UInt64Value { value: inodes }),
    };
    let containers = server.map(|server| server.store.containers()).unwrap_or_default();
    let sizes = containers.iter().filter_map(|container| container.layer_size.last());
    let (bytes, inodes) = sizes.fold((0, 0), |(bytes, inodes), size| (bytes + size.bytes, inodes + size.inodes));
    cri::ImageFsInfoResponse {
        image_filesystems: vec![usage(info.used_bytes, info.inodes_used)],
        container_filesystems: vec![usage(bytes, inodes)],
    }
}
