//! `RemoveImage`: all names of the image go; an unknown image is fine.

use orlop_image::{ImageError, Images};
use orlop_proto::cri;
use tonic::Status;

use crate::image_service::{name_of, to_status};

/// Removes an image by reference or id.
pub(crate) async fn remove(
    images: &Images,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Status> {
    match images.remove(&name_of(request.image)?).await {
        Ok(_) | Err(ImageError::NotFound(_)) => Ok(cri::RemoveImageResponse {}),
        Err(error) => Err(to_status(&error)),
    }
}
