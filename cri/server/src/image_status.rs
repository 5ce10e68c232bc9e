//! `ImageStatus`: an unknown image is an empty answer, not an error.

use std::collections::HashMap;

use orlop_image::{ImageRecord, Images};
use orlop_proto::cri;
use serde_json::json;
use tonic::Status;

use crate::image_service::{name_of, to_cri, to_status};

/// The image of a reference or id; with `verbose`, its configuration as JSON under `info`.
pub(crate) fn status(images: &Images, request: cri::ImageStatusRequest) -> Result<cri::ImageStatusResponse, Status> {
    let name = name_of(request.image)?;
    let Some(record) = images.resolve(&name).map_err(|error| to_status(&error))? else {
        return Ok(cri::ImageStatusResponse::default());
    };
    let info = if request.verbose { verbose(images, &record) } else { Default::default() };
    Ok(cri::ImageStatusResponse { image: Some(to_cri(&record)), info: info.into_iter().collect() })
}

fn verbose(images: &Images, record: &ImageRecord) -> HashMap<String, String> {
    let info = json!({
        "chainID": record.chain_id,
        "manifestDigest": record.manifest_digest,
        "imageSpec": images.configuration_json(&record.id),
        "layers": record.lower_dirs,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
