//! `fieldRef` and `resourceFieldRef` of environment variables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::containers;
use orlop_agent_core::quantity::{milli, units};

/// The value of a field of the pod.
pub(crate) fn field(pod: &Pod, path: &str) -> Result<String, String> {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => containers::name(pod).to_owned(),
        "metadata.namespace" => containers::namespace(pod).to_owned(),
        "metadata.uid" => containers::uid(pod).to_owned(),
        "spec.nodeName" => spec.node_name.unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.unwrap_or_default(),
        "status.hostIP" => status.host_ip.unwrap_or_default(),
        "status.podIP" => status.pod_ip.unwrap_or_default(),
        "status.hostIPs" => {
            status.host_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect::<Vec<_>>().join(",")
        }
        "status.podIPs" => status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect::<Vec<_>>().join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The amount of a resource that a container asks for or may use, in multiples of the divisor, rounded up. Without a
/// limit it is what the node can give.
pub(crate) fn resource(
    pod: &Pod,
    own: &str,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, String> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(own);
    let container = containers::find_container(pod, name).ok_or_else(|| format!("container {name} not found"))?;
    let resources = container.container.resources.clone().unwrap_or_default();
    let (list, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?;
    let of = |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().and_then(|list| list.get(resource)).cloned();
    let quantity = match list {
        "limits" => of(&resources.limits).or_else(|| allocatable.get(resource).cloned()),
        "requests" => of(&resources.requests).or_else(|| of(&resources.limits)),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let quantity = quantity.unwrap_or_else(|| Quantity("0".to_owned()));
    let divisor = selector
        .divisor
        .clone()
        .filter(|divisor| !divisor.0.is_empty() && divisor.0 != "0")
        .unwrap_or_else(|| Quantity("1".to_owned()));
    let scale = |quantity: &Quantity| if resource == "cpu" { milli(quantity) } else { units(quantity) };
    let (value, divisor) = (
        scale(&quantity).map_err(|error| error.to_string())?,
        scale(&divisor).map_err(|error| error.to_string())?.max(1),
    );
    Ok(((value + divisor - 1) / divisor).to_string())
}
