//! `ListImages` and `StreamImages`.

use std::pin::Pin;

use futures::Stream;
use orlop_image::Images;
use orlop_proto::cri;
use tonic::Status;

use crate::image_service::{to_cri, to_status};

/// All images, or the one that the filter names.
pub(crate) fn list(images: &Images, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, Status> {
    let name = filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        return Ok(images.list().iter().map(to_cri).collect());
    }
    let found = images.resolve(&name).map_err(|error| to_status(&error))?;
    Ok(found.iter().map(to_cri).collect())
}

/// The same, one message each, so that no message grows with the number of images.
pub(crate) fn stream(
    images: Vec<cri::Image>,
) -> Pin<Box<dyn Stream<Item = Result<cri::StreamImagesResponse, Status>> + Send>> {
    Box::pin(futures::stream::iter(
        images.into_iter().map(|image| Ok(cri::StreamImagesResponse { images: vec![image] })),
    ))
}
