//! Images that a container mounts as volumes: each is held as long as the container is there.

use orlop_cri_spec::ImageVolume;
use orlop_proto::cri;

use crate::container_create::image_error;
use crate::error::RpcError;
use crate::server::Server;

/// What parts the container's id from the number of the volume in the name of a hold.
const MARK: char = '.';

/// An image that is held for a mount.
pub(crate) struct HeldVolume {
    pub(crate) view: ImageVolume,
    /// The image by its id, which is what a pull answers.
    pub(crate) image_ref: String,
}

/// Finds and holds the images that a container mounts; they have to be on the node.
pub(crate) async fn hold(
    server: &Server,
    id: &str,
    config: &cri::ContainerConfig,
) -> Result<Vec<HeldVolume>, RpcError> {
    let mut held: Vec<HeldVolume> = Vec::new();
    for image in config.mounts.iter().filter_map(|mount| mount.image.as_ref()) {
        if held.iter().any(|known| known.view.image == image.image) {
            continue;
        }
        let found = server.images.resolve(&image.image).map_err(image_error(&image.image))?;
        let record = found.ok_or_else(|| RpcError::NotFound { kind: "image", id: image.image.clone() })?;
        let holder = format!("{id}{MARK}{}", held.len());
        server.images.hold(&holder, &record.id).await.map_err(image_error(&image.image))?;
        held.push(HeldVolume {
            image_ref: record.id.clone(),
            view: ImageVolume {
                image: image.image.clone(),
                layers: match record.artifact_folder() {
                    Some(folder) => vec![folder.into()],
                    None => record.lower_dirs,
                },
            },
        });
    }
    Ok(held)
}

/// The holds of a container: that of its own image and those of its volumes.
pub(crate) fn holders_of(server: &Server, id: &str) -> Vec<String> {
    let mut holders = server.images.holders();
    holders.retain(|holder| container_of(holder) == id);
    holders
}

/// The container that a hold belongs to.
pub(crate) fn container_of(holder: &str) -> &str {
    holder.split(MARK).next().unwrap_or(holder)
}

#[cfg(test)]
mod tests {
    #[test]
    fn holds_name_their_container() {
        assert_eq!(super::container_of("abc"), "abc");
        assert_eq!(super::container_of("abc.1"), "abc");
    }
}
