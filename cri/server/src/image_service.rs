//! The ImageService of CRI: one file per RPC does the work, this one is the door.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use orlop_image::registry::RegistryError;
use orlop_image::unpack::UnpackError;
use orlop_image::{ImageError, ImageRecord, Images};
use orlop_proto::cri;
use orlop_proto::cri::image_service_server::ImageService;
use tonic::{Code, Request, Response, Status};

use crate::server::Server;
use crate::{image_fs_info, image_list, image_pull, image_remove, image_status};

/// The ImageService on a store of images.
#[derive(Clone)]
pub struct ImageRpc {
    /// The images.
    pub images: Arc<Images>,
    /// Whose containers stand on them.
    server: Option<Arc<Server>>,
}

impl ImageRpc {
    /// The service on images alone.
    pub fn new(images: Arc<Images>) -> ImageRpc {
        ImageRpc { images, server: None }
    }

    /// The service of a server with containers.
    pub(crate) fn of(server: Arc<Server>) -> ImageRpc {
        ImageRpc { images: server.images.clone(), server: Some(server) }
    }
}

#[tonic::async_trait]
impl ImageService for ImageRpc {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = image_list::list(&self.images, request.into_inner().filter)?;
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        image_status::status(&self.images, request.into_inner()).map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let count = self.server.as_ref().map(|server| server.metrics.begin_pull());
        let pulled = image_pull::pull(&self.images, request.into_inner()).await?;
        if let Some(count) = count {
            count.succeed();
        }
        Ok(Response::new(pulled))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        image_remove::remove(&self.images, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Ok(Response::new(image_fs_info::fs_info(&self.images, self.server.as_deref())))
    }

    type StreamImagesStream = Pin<Box<dyn Stream<Item = Result<cri::StreamImagesResponse, Status>> + Send>>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = image_list::list(&self.images, request.into_inner().filter)?;
        Ok(Response::new(image_list::stream(images)))
    }
}

/// The name in a request; every RPC about one image needs it.
pub(crate) fn name_of(spec: Option<cri::ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() {
        Err(Status::invalid_argument("image.image is empty: give a reference or an id"))
    } else {
        Ok(name)
    }
}

/// An image as CRI shows it.
pub(crate) fn to_cri(record: &ImageRecord) -> cri::Image {
    let (uid, username) = user_of(&record.config.user);
    cri::Image {
        id: record.id.clone(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        size: record.size_bytes,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        spec: None,
        pinned: record.pinned,
    }
}

/// Uid or user name of `USER`. Digits are never a name that could be looked up; digits that are no uid stay text, so that
/// nobody takes them for a checked number.
fn user_of(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) if user.bytes().all(|byte| byte.is_ascii_digit()) => (Some(uid.into()), String::new()),
        _ => (None, user.to_owned()),
    }
}

/// The gRPC status of a failure.
pub(crate) fn to_status(error: &ImageError) -> Status {
    let code = match error {
        ImageError::Reference(_) | ImageError::Ambiguous(_) => Code::InvalidArgument,
        ImageError::NotFound(_) => Code::NotFound,
        ImageError::Registry { source, .. } => match source {
            RegistryError::NotFound { .. } => Code::NotFound,
            RegistryError::Unauthorized { .. } => Code::Unauthenticated,
            RegistryError::Denied { .. } | RegistryError::Challenge { .. } => Code::PermissionDenied,
            RegistryError::RateLimited { .. } => Code::ResourceExhausted,
            RegistryError::Unavailable { .. } => Code::Unavailable,
            RegistryError::WrongContent { .. } => Code::DataLoss,
            RegistryError::Protocol { .. } | RegistryError::Configuration { .. } => Code::FailedPrecondition,
        },
        ImageError::Layer { source: UnpackError::NoSpace { .. }, .. } => Code::ResourceExhausted,
        ImageError::Verification { .. } => Code::FailedPrecondition,
        ImageError::Document { .. } | ImageError::Layer { .. } | ImageError::Archive { .. } => Code::FailedPrecondition,
        ImageError::Store { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    // The kubelet looks at how the message begins.
    let reason = match error {
        ImageError::Verification { .. } => "SignatureValidationFailed: ",
        _ if code == Code::Unavailable => "RegistryUnavailable: ",
        _ => "",
    };
    Status::new(code, format!("{reason}{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_uid_or_nothing() {
        let table = [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:web", None, "www-data"),
            ("4294967296", None, "4294967296"),
            ("+1", None, "+1"),
            ("-1", None, "-1"),
        ];
        for (user, uid, username) in table {
            assert_eq!(user_of(user), (uid, username.to_owned()), "{user}");
        }
    }
}
