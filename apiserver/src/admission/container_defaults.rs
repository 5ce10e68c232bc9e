//! What a container has when it does not say.

use serde_json::{Value, json};

use super::pod_defaults::default_requests;
use crate::object;

/// Fills in the defaults of a container.
pub fn default_container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(object::text(container, "/image"));
    for (key, value) in [
        ("imagePullPolicy", json!(policy)),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
        ("resources", json!({})),
    ] {
        object::default(container, key, || value.clone());
        if container.get(key).and_then(Value::as_str) == Some("") {
            container[key] = value;
        }
    }
    for key in ["stdin", "stdinOnce", "tty"] {
        if container.get(key).and_then(Value::as_bool) == Some(false) {
            object::remove(container, key);
        }
    }
    default_requests(container.get_mut("resources"));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        object::default(port, "protocol", || json!("TCP"));
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            object::default(port, "hostPort", || number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
    for hook in ["/lifecycle/postStart", "/lifecycle/preStop"] {
        if let Some(hook) = container.pointer_mut(hook) {
            default_http(hook);
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(file) = variable.pointer_mut("/valueFrom/fileKeyRef") {
            object::default(file, "optional", || json!(false));
        }
        if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
            object::default(reference, "apiVersion", || json!("v1"));
        }
        if let Some(reference) = variable.pointer_mut("/valueFrom/resourceFieldRef") {
            object::default(reference, "divisor", || json!("0"));
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        object::default(probe, key, || json!(value));
        if probe.get(key).and_then(Value::as_i64) == Some(0) {
            probe[key] = json!(value);
        }
    }
    default_http(probe);
    if let Some(grpc) = probe.get_mut("grpc") {
        object::default(grpc, "service", || json!(""));
    }
}

fn default_http(handler: &mut Value) {
    if let Some(http) = handler.get_mut("httpGet") {
        object::default(http, "path", || json!("/"));
        object::default(http, "scheme", || json!("HTTP"));
    }
}

/// `Always` for an image whose tag is `latest` or missing, `IfNotPresent` for others and for digests.
pub fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
