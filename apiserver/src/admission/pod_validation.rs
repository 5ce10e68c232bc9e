//! Validation of pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::container_validation::{self, Role};
use super::{names, volume_validation};
use crate::error::FieldError;
use crate::object;

/// Longest name that the kernel takes, in bytes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Checks a pod.
pub fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let volumes = volume_validation::validate(spec, &mut errors);
    validate_containers(spec, &volumes, &mut errors);
    validate_env_files(spec, &mut errors);
    validate_choices(spec, &mut errors);
    validate_numbers(spec, &mut errors);
    validate_names(spec, &mut errors);
    validate_tolerations(spec, &mut errors);
    validate_dns(spec, &mut errors);
    for (index, alias) in object::items(spec, "/hostAliases").iter().enumerate() {
        let ip = object::text(alias, "/ip");
        if ip.parse::<IpAddr>().is_err() {
            let text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(format!("spec.hostAliases[{index}].ip"), ip, text));
        }
        for (number, name) in
            object::strings(alias, "/hostnames").into_iter().enumerate().filter(|(_, name)| !names::is_subdomain(name))
        {
            let place = format!("spec.hostAliases[{index}].hostnames[{number}]");
            errors.push(FieldError::invalid(place, name, names::SUBDOMAIN_TEXT));
        }
    }
    validate_security(spec, &mut errors);
    if !object::text(pod, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty()
        && object::text(spec, "/nodeName").is_empty()
    {
        errors.push(FieldError::invalid(
            "metadata.annotations[kubernetes.io/config.mirror]",
            "",
            "must set spec.nodeName if mirror pod annotation is set",
        ));
    }
    errors
}

fn validate_containers(spec: &Value, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let containers = object::items(spec, "/containers");
    if containers.is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    let mut seen = BTreeSet::new();
    for (list, role) in
        [("containers", Role::App), ("initContainers", Role::Init), ("ephemeralContainers", Role::Ephemeral)]
    {
        for (index, container) in object::items(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            container_validation::validate(container, &path, role, volumes, errors);
            let name = object::text(container, "/name");
            if !name.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
    }
    validate_host_ports(containers, errors);
    if flag(spec, "hostNetwork") {
        for (index, container) in containers.iter().enumerate() {
            for (number, port) in object::items(container, "/ports").iter().enumerate() {
                let (host, own) =
                    (object::number(port, "/hostPort").unwrap_or(0), object::number(port, "/containerPort"));
                if host != 0 && Some(host) != own {
                    let place = format!("spec.containers[{index}].ports[{number}].hostPort");
                    errors.push(FieldError::invalid(
                        place,
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
}

/// Sysctls that belong to the network, which a pod on the node's network does not own.
const NETWORK_SYSCTLS: &str = "net.";

fn validate_security(spec: &Value, errors: &mut Vec<FieldError>) {
    let path = "spec.securityContext";
    for (index, group) in object::items(spec, "/securityContext/supplementalGroups").iter().enumerate() {
        if let Some(group) = group.as_i64().filter(|group| !(0..=i64::from(i32::MAX)).contains(group)) {
            errors.push(FieldError::invalid(
                format!("{path}.supplementalGroups[{index}]"),
                group,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, sysctl) in object::items(spec, "/securityContext/sysctls").iter().enumerate() {
        let (place, name) = (format!("{path}.sysctls[{index}].name"), object::text(sysctl, "/name"));
        if name.is_empty() {
            errors.push(FieldError::required(place.as_str(), ""));
        } else if !names::is_sysctl(name) {
            let text = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(place.as_str(), name, text));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(place.as_str(), name));
        }
        if name.starts_with(NETWORK_SYSCTLS) && flag(spec, "hostNetwork") {
            errors.push(FieldError::invalid(place, name, "may not be specified when 'hostNetwork' is true"));
        }
    }
    if let Some(profile) = spec.pointer("/securityContext/seccompProfile") {
        container_validation::validate_seccomp(profile, &format!("{path}.seccompProfile"), errors);
    }
}

fn validate_host_ports(containers: &[Value], errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (number, port) in object::items(container, "/ports").iter().enumerate() {
            let Some(host) = object::number(port, "/hostPort").filter(|host| *host != 0) else { continue };
            let key = format!("{}/{}/{host}", object::text(port, "/protocol"), object::text(port, "/hostIP"));
            if !seen.insert(key.clone()) {
                errors.push(FieldError::duplicate(format!("spec.containers[{index}].ports[{number}].hostPort"), &key));
            }
        }
    }
}

fn validate_choices(spec: &Value, errors: &mut Vec<FieldError>) {
    for (key, supported) in [
        ("restartPolicy", &["Always", "OnFailure", "Never"][..]),
        ("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"][..]),
        ("preemptionPolicy", &["Never", "PreemptLowerPriority"][..]),
    ] {
        let value = object::text(spec, &format!("/{key}"));
        if !value.is_empty() && !supported.contains(&value) {
            errors.push(FieldError::unsupported(format!("spec.{key}"), value, supported));
        }
    }
    let os = object::text(spec, "/os/name");
    if !os.is_empty() && !matches!(os, "linux" | "windows") {
        errors.push(FieldError::unsupported("spec.os.name", os, &["linux", "windows"]));
    }
}

fn validate_numbers(spec: &Value, errors: &mut Vec<FieldError>) {
    if let Some(seconds) = object::number(spec, "/activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            seconds,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = object::number(spec, &format!("/securityContext/{key}"))
            && !(0..=i64::from(i32::MAX)).contains(&id)
        {
            errors.push(FieldError::invalid(
                format!("spec.securityContext.{key}"),
                id,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool) == Some(true);
    if spec.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for (key, set) in
            [("hostNetwork", host_network), ("hostPID", flag(spec, "hostPID")), ("hostIPC", flag(spec, "hostIPC"))]
        {
            if set {
                errors.push(FieldError::forbidden(format!("spec.{key}"), "when `hostUsers` is false"));
            }
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errors.push(FieldError::invalid(
            "spec.shareProcessNamespace",
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
}

fn flag(spec: &Value, key: &str) -> bool {
    spec.get(key).and_then(Value::as_bool) == Some(true)
}

fn validate_names(spec: &Value, errors: &mut Vec<FieldError>) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let name = object::text(spec, &format!("/{key}"));
        if !name.is_empty() && !names::is_subdomain(name) {
            errors.push(FieldError::invalid(format!("spec.{key}"), name, names::SUBDOMAIN_TEXT));
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = object::text(spec, &format!("/{key}"));
        if !name.is_empty() && !names::is_label(name) {
            errors.push(FieldError::invalid(format!("spec.{key}"), name, names::LABEL_TEXT));
        }
    }
    validate_hostname_override(spec, errors);
    for (key, value) in spec.get("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        if !names::is_qualified_name(key) {
            errors.push(FieldError::invalid("spec.nodeSelector", key.as_str(), names::QUALIFIED_TEXT));
        }
        if !names::is_label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid("spec.nodeSelector", value.clone(), names::LABEL_VALUE_TEXT));
        }
    }
}

/// A name that goes before all others leaves no room for other wishes about it.
fn validate_hostname_override(spec: &Value, errors: &mut Vec<FieldError>) {
    let Some(name) = spec.get("hostnameOverride").and_then(Value::as_str) else { return };
    let field = "spec.hostnameOverride";
    if !names::is_subdomain(name) {
        errors.push(FieldError::invalid(field, name, names::SUBDOMAIN_TEXT));
    }
    if name.len() > HOSTNAME_BYTES_MAX {
        errors.push(FieldError::too_long(field, HOSTNAME_BYTES_MAX));
    }
    for other in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.get(other).and_then(Value::as_bool) == Some(true) {
            errors.push(FieldError::forbidden(field, &format!("may not be specified when {other} is true")));
        }
    }
}

/// Variables that stand in a file: it has to be in an emptyDir of the pod.
fn validate_env_files(spec: &Value, errors: &mut Vec<FieldError>) {
    let volumes = object::items(spec, "/volumes");
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (number, container) in object::items(spec, &format!("/{list}")).iter().enumerate() {
            for (index, variable) in object::items(container, "/env").iter().enumerate() {
                let Some(reference) = variable.pointer("/valueFrom/fileKeyRef") else { continue };
                let name = object::text(reference, "/volumeName");
                let place = format!("spec.{list}[{number}].env[{index}].valueFrom.fileKeyRef.volumeName");
                if name.is_empty() {
                    errors.push(FieldError::required(place.as_str(), ""));
                }
                match volumes.iter().find(|volume| object::text(volume, "/name") == name) {
                    None => errors.push(FieldError::not_found(place, name)),
                    Some(volume) if volume.get("emptyDir").is_none() => {
                        errors.push(FieldError::invalid(place, name, "referenced volume must be of type emptyDir"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn validate_tolerations(spec: &Value, errors: &mut Vec<FieldError>) {
    for (index, toleration) in object::items(spec, "/tolerations").iter().enumerate() {
        let path = format!("spec.tolerations[{index}]");
        let text = |key: &str| object::text(toleration, key);
        let (key, operator, effect) = (text("/key"), text("/operator"), text("/effect"));
        if !key.is_empty() && !names::is_qualified_name(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), key, names::QUALIFIED_TEXT));
        }
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if !matches!(operator, "" | "Equal" | "Exists" | "Lt" | "Gt") {
            errors.push(FieldError::unsupported(format!("{path}.operator"), operator, &["Equal", "Exists"]));
        }
        if operator == "Exists" && !text("/value").is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                text("/value"),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            errors.push(FieldError::unsupported(
                format!("{path}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{path}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
}

fn validate_dns(spec: &Value, errors: &mut Vec<FieldError>) {
    let servers = object::strings(spec, "/dnsConfig/nameservers");
    if object::text(spec, "/dnsPolicy") == "None" && spec.get("dnsConfig").is_none() {
        errors.push(FieldError::required("spec.dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None"));
    } else if object::text(spec, "/dnsPolicy") == "None" && servers.is_empty() {
        let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required("spec.dnsConfig.nameservers", text));
    }
    if servers.len() > 3 {
        errors.push(FieldError::invalid(
            "spec.dnsConfig.nameservers",
            serde_json::json!(servers),
            "must not have more than 3 nameservers",
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(format!("spec.dnsConfig.nameservers[{index}]"), *server, text));
        }
    }
}
