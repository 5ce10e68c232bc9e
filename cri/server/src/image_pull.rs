//! `PullImage`: joins a running pull of the same image; ends with the caller.

use std::sync::Arc;

use orlop_image::registry::is_meant_for;
use orlop_image::{Credentials, Images, Reference};
use orlop_proto::cri;
use tonic::Status;

use crate::image_service::{name_of, to_status};

/// Pulls and answers with the image id.
pub(crate) async fn pull(
    images: &Arc<Images>,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Status> {
    let name = name_of(request.image)?;
    let reference: Reference = name
        .parse()
        .map_err(|error: orlop_image::reference::ReferenceError| Status::invalid_argument(error.to_string()))?;
    let credentials = request.auth.map(|auth| credentials_of(auth, &reference)).transpose()?.flatten();
    let image_ref = images.pull(&name, credentials).await.map_err(|error| to_status(&error))?;
    Ok(cri::PullImageResponse { image_ref })
}

/// What the caller gives for the registry; nothing when it names another server.
fn credentials_of(auth: cri::AuthConfig, reference: &Reference) -> Result<Option<Credentials>, Status> {
    if !auth.server_address.is_empty() && !is_meant_for(&auth.server_address, reference.registry()) {
        return Ok(None);
    }
    let mut credentials = Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    };
    if credentials.is_empty() && !auth.auth.is_empty() {
        credentials = Credentials::from_encoded(&auth.auth).ok_or_else(|| {
            Status::invalid_argument("auth.auth must be user:password in base64: correct the imagePullSecret")
        })?;
    }
    Ok(Some(credentials).filter(|given| !given.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_with_their_server() {
        let reference: Reference = "registry.example/app".parse().unwrap();
        let auth = |server: &str| cri::AuthConfig {
            username: "me".into(),
            password: "p".into(),
            server_address: server.into(),
            ..Default::default()
        };
        assert!(credentials_of(auth(""), &reference).unwrap().is_some());
        assert!(credentials_of(auth("https://registry.example/v1/"), &reference).unwrap().is_some());
        assert!(credentials_of(auth("other.example"), &reference).unwrap().is_none());
        assert!(credentials_of(cri::AuthConfig::default(), &reference).unwrap().is_none());
        assert!(credentials_of(cri::AuthConfig { auth: "nonsense".into(), ..Default::default() }, &reference).is_err());
    }
}
