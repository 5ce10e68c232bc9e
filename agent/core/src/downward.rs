//! `fieldRef` and `resourceFieldRef`: facts of a pod for its own containers, in variables and files.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::containers;
use crate::quantity::{milli, units};

/// The value of a field of the pod.
///
/// # Errors
/// When there is no such field.
pub fn field(pod: &Pod, path: &str) -> Result<String, String> {
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
        "metadata.labels" => lines(pod.metadata.labels.as_ref()),
        "metadata.annotations" => lines(pod.metadata.annotations.as_ref()),
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

/// Labels or annotations as a file holds them: a line each, sorted, with the value quoted as Go's `%q` does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A text in double quotes, with the escapes of Go's `%q`.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            control if (control as u32) < 0x20 || control as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", control as u32));
            }
            control if control.is_control() => out.push_str(&format!("\\u{:04x}", control as u32)),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// The amount of a resource that a container asks for or may use, in multiples of the divisor, rounded up. Without a
/// limit it is what the pod may use, and without that what the node can give.
///
/// # Errors
/// When there is no such container or resource.
pub fn resource(
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
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let of_pod = || whole.and_then(|resources| of(&resources.limits));
    let quantity = match list {
        "limits" => of(&resources.limits).or_else(of_pod).or_else(|| allocatable.get(resource).cloned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k": "line\nnext\u{1}é"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields_of_files() {
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("metadata.annotations", "k=\"line\\nnext\\x01é\""),
            ("metadata.labels['b']", "2"),
        ] {
            assert_eq!(field(&pod(), path).unwrap(), want, "{path}");
        }
        assert_eq!(field(&pod(), "spec.x").unwrap_err(), "unsupported fieldPath: spec.x");
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let allocatable = BTreeMap::from([("ephemeral-storage".to_owned(), Quantity("10Gi".into()))]);
        for (name, divisor, want) in [
            ("limits.cpu", None, "1"),
            ("limits.cpu", Some("1m"), "250"),
            ("requests.memory", Some("1Mi"), "64"),
            ("limits.ephemeral-storage", Some("1Gi"), "10"),
            ("requests.ephemeral-storage", None, "0"),
        ] {
            let selector = ResourceFieldSelector {
                resource: name.into(),
                divisor: divisor.map(|divisor| Quantity(divisor.into())),
                ..Default::default()
            };
            assert_eq!(resource(&pod(), "c", &selector, &allocatable).unwrap(), want, "{name} by {divisor:?}");
        }
        let whole: Pod = serde_json::from_value(serde_json::json!({"spec": {"resources": {"limits": {"cpu": "3"}},
            "containers": [{"name": "own", "resources": {"limits": {"cpu": "1"}}}, {"name": "none"}]}}))
        .unwrap();
        let node =
            BTreeMap::from([("cpu".to_owned(), Quantity("8".into())), ("memory".to_owned(), Quantity("9".into()))]);
        for (container, name, want) in
            [("own", "limits.cpu", "1"), ("none", "limits.cpu", "3"), ("none", "limits.memory", "9")]
        {
            let selector = ResourceFieldSelector { resource: name.into(), ..Default::default() };
            assert_eq!(resource(&whole, container, &selector, &node).unwrap(), want, "{name} of {container}");
        }
    }
}
