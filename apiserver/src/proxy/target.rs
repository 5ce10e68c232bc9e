//! Which container of a pod a client means.

use serde_json::Value;

use crate::error::ApiError;
use crate::object;

/// The container named, or the only one.
///
/// # Errors
/// 400 when the pod has no such container, or several and none is named.
pub fn container(pod: &Value, named: &str) -> Result<String, ApiError> {
    let names =
        |list: &str| -> Vec<&str> { object::items(pod, list).iter().map(|item| object::text(item, "/name")).collect() };
    let (apps, inits, ephemeral) =
        (names("/spec/containers"), names("/spec/initContainers"), names("/spec/ephemeralContainers"));
    let name = object::name(pod);
    if !named.is_empty() {
        if [&apps, &inits, &ephemeral].iter().any(|list| list.contains(&named)) {
            return Ok(named.into());
        }
        return Err(ApiError::bad_request(format!("container {named} is not valid for pod {name}")));
    }
    match apps[..] {
        [only] => Ok(only.into()),
        _ => {
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", apps.join(" "));
            if !inits.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            if !ephemeral.is_empty() {
                text.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}
