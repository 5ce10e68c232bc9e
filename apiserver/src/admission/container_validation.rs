//! Validation of containers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{environment_validation, names};
use crate::error::FieldError;
use crate::object;
use crate::quantity::Quantity;

/// Which list a container is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `containers`.
    App,
    /// `initContainers`.
    Init,
    /// `ephemeralContainers`.
    Ephemeral,
}

/// Checks a container.
pub fn validate(container: &Value, path: &str, role: Role, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let name = object::text(container, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if !names::is_label(name) {
        errors.push(FieldError::invalid(format!("{path}.name"), name, names::LABEL_TEXT));
    }
    let image = object::text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    let choice = |key: &str, supported: &[&str], errors: &mut Vec<FieldError>| {
        let value = object::text(container, &format!("/{key}"));
        if !value.is_empty() && !supported.contains(&value) {
            errors.push(FieldError::unsupported(format!("{path}.{key}"), value, supported));
        }
    };
    choice("imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    choice("terminationMessagePolicy", &["File", "FallbackToLogsOnError"], errors);
    validate_role(container, path, role, errors);
    validate_ports(container, path, errors);
    environment_validation::validate(container, path, errors);
    validate_mounts(container, path, volumes, errors);
    validate_resources(container.get("resources").unwrap_or(&Value::Null), &format!("{path}.resources"), errors);
    validate_security(container, path, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get(probe) {
            validate_probe(found, &format!("{path}.{probe}"), probe, errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(found) = container.pointer(&format!("/lifecycle/{hook}")) {
            validate_handler(
                found,
                &format!("{path}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

fn validate_role(container: &Value, path: &str, role: Role, errors: &mut Vec<FieldError>) {
    let sidecar = object::text(container, "/restartPolicy") == "Always";
    let forbidden: (&[&str], &str) = match role {
        Role::App => (&[], ""),
        Role::Init if sidecar => (&[], ""),
        Role::Init => (
            &["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"],
            "may not be set for init containers without restartPolicy=Always",
        ),
        Role::Ephemeral => (
            &["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "restartPolicy", "resizePolicy"],
            "cannot be set for an Ephemeral Container",
        ),
    };
    for key in forbidden.0.iter().filter(|key| container.get(**key).is_some()) {
        errors.push(FieldError::forbidden(format!("{path}.{key}"), forbidden.1));
    }
    if role == Role::Ephemeral
        && container.get("resources").and_then(Value::as_object).is_some_and(|map| !map.is_empty())
    {
        errors.push(FieldError::forbidden(format!("{path}.resources"), "cannot be set for an Ephemeral Container"));
    }
    let policy = object::text(container, "/restartPolicy");
    if !matches!(policy, "" | "Always" | "OnFailure" | "Never") {
        errors.push(FieldError::unsupported(
            format!("{path}.restartPolicy"),
            policy,
            &["Always", "Never", "OnFailure"],
        ));
    }
}

fn validate_ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, port) in object::items(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = object::text(port, "/name");
        if !name.is_empty() {
            let faults = names::port_name_faults(name);
            for text in &faults {
                errors.push(FieldError::invalid(format!("{path}.name"), name, text));
            }
            if faults.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        match object::number(port, "/containerPort") {
            None | Some(0) => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            Some(number) if !(1..=65535).contains(&number) => {
                errors.push(FieldError::invalid(
                    format!("{path}.containerPort"),
                    number,
                    "must be between 1 and 65535, inclusive",
                ));
            }
            Some(_) => {}
        }
        if let Some(number) = object::number(port, "/hostPort").filter(|number| !(0..=65535).contains(number)) {
            errors.push(FieldError::invalid(
                format!("{path}.hostPort"),
                number,
                "must be between 1 and 65535, inclusive",
            ));
        }
        let protocol = object::text(port, "/protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::unsupported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
    }
}

fn validate_mounts(container: &Value, path: &str, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, mount) in object::items(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = object::text(mount, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        let target = object::text(mount, "/mountPath");
        if target.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !seen.insert(target) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), target, "must be unique"));
        }
        for key in ["subPath", "subPathExpr"] {
            let sub = object::text(mount, &format!("/{key}"));
            if sub.starts_with('/') {
                errors.push(FieldError::invalid(format!("{path}.{key}"), sub, "must be a relative path"));
            }
            if sub.split('/').any(|part| part == "..") {
                let place = path.rsplit_once('[').map_or(path.as_str(), |(place, _)| place);
                errors.push(FieldError::invalid(format!("{place}.{key}"), sub, "must not contain '..'"));
            }
        }
        if !object::text(mount, "/subPath").is_empty() && !object::text(mount, "/subPathExpr").is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.subPathExpr"),
                object::text(mount, "/subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        let propagation = object::text(mount, "/mountPropagation");
        if !matches!(propagation, "" | "None" | "HostToContainer" | "Bidirectional") {
            errors.push(FieldError::unsupported(
                format!("{path}.mountPropagation"),
                propagation,
                &["Bidirectional", "HostToContainer", "None"],
            ));
        }
        let privileged = container.pointer("/securityContext/privileged").and_then(Value::as_bool) == Some(true);
        if propagation == "Bidirectional" && !privileged {
            errors.push(FieldError::forbidden(
                format!("{path}.mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            ));
        }
    }
}

fn validate_resources(resources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let entries = |key: &str| resources.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    for key in ["limits", "requests"] {
        for (name, amount) in entries(key) {
            let field = format!("{path}.{key}[{name}]");
            if !name.contains('/')
                && !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                && !name.starts_with("hugepages-")
            {
                for text in [
                    "must be a standard resource type or fully qualified",
                    "must be a standard resource for containers",
                ] {
                    errors.push(FieldError::invalid(format!("{path}.{key}[{name}]"), name.as_str(), text));
                }
            }
            if name.contains('/')
                && Quantity::parse(amount.as_str().unwrap_or_default()).is_some_and(|amount| amount.milli() % 1000 != 0)
            {
                errors.push(FieldError::invalid(format!("{path}.{key}[{name}]"), amount.clone(), "must be an integer"));
            }
            if Quantity::parse(amount.as_str().unwrap_or_default()).is_none_or(|amount| amount.is_negative()) {
                errors.push(FieldError::invalid(field, amount, "must be greater than or equal to 0"));
            }
        }
    }
    let limits = entries("limits");
    if entries("requests").keys().any(|name| name.contains('/') && !limits.contains_key(name)) {
        errors
            .push(FieldError::required(format!("{path}.limits"), "Limit must be set for non overcommitable resources"));
    }
    for (name, request) in entries("requests") {
        let read = |value: &Value| Quantity::parse(value.as_str().unwrap_or_default()).map(|amount| amount.milli());
        let limit = limits.get(&name);
        if let (Some(requested), Some(limited)) = (read(&request), limit.and_then(read))
            && requested > limited
        {
            let text = format!(
                "must be less than or equal to {name} limit of {}",
                limit.and_then(Value::as_str).unwrap_or_default()
            );
            errors.push(FieldError::invalid(format!("{path}.requests"), request, &text));
        }
    }
}

fn validate_security(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(context) = container.get("securityContext") else { return };
    let is = |key: &str, value: bool| context.get(key).and_then(Value::as_bool) == Some(value);
    if is("privileged", true) && is("allowPrivilegeEscalation", false) {
        let text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(format!("{path}.securityContext"), context.clone(), text));
    }
    let mount = object::text(context, "/procMount");
    if !matches!(mount, "" | "Default" | "Unmasked") {
        errors.push(FieldError::unsupported(
            format!("{path}.securityContext.procMount"),
            mount,
            &["Default", "Unmasked"],
        ));
    }
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(id) =
            object::number(context, &format!("/{key}")).filter(|id| !(0..=i64::from(i32::MAX)).contains(id))
        {
            errors.push(FieldError::invalid(
                format!("{path}.securityContext.{key}"),
                id,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    if let Some(profile) = context.get("seccompProfile") {
        validate_seccomp(profile, &format!("{path}.securityContext.seccompProfile"), errors);
    }
}

/// Checks a seccomp profile.
pub fn validate_seccomp(profile: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let kind = object::text(profile, "/type");
    let file = object::text(profile, "/localhostProfile");
    match kind {
        "Localhost" if file.is_empty() => {
            errors.push(FieldError::required(
                format!("{path}.localhostProfile"),
                "must be set when seccomp type is Localhost",
            ));
        }
        "Localhost" if file.starts_with('/') || file.split('/').any(|part| part == "..") => {
            errors.push(FieldError::invalid(format!("{path}.localhostProfile"), file, "must be a relative path"));
        }
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => errors.push(FieldError::required(format!("{path}.type"), "type is required when seccompProfile is set")),
        other => errors.push(FieldError::unsupported(
            format!("{path}.type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        )),
    }
}

fn validate_probe(probe: &Value, path: &str, kind: &str, errors: &mut Vec<FieldError>) {
    validate_handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if let Some(number) = object::number(probe, &format!("/{key}")).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(format!("{path}.{key}"), number, "must be greater than or equal to 0"));
        }
    }
    if kind != "readinessProbe" && object::number(probe, "/successThreshold").is_some_and(|number| number != 1) {
        let number = object::number(probe, "/successThreshold").unwrap_or(0);
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), number, "must be 1"));
    }
    if kind == "readinessProbe" && probe.get("terminationGracePeriodSeconds").is_some() {
        errors.push(FieldError::invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            object::number(probe, "/terminationGracePeriodSeconds").unwrap_or(0),
            "must not be set for readinessProbes",
        ));
    }
}

fn validate_handler(handler: &Value, path: &str, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let found: Vec<&&str> = kinds.iter().filter(|kind| handler.get(**kind).is_some()).collect();
    match found.len() {
        0 => errors.push(FieldError::required(path, "must specify a handler type")),
        1 => {}
        _ => errors
            .push(FieldError::forbidden(format!("{path}.{}", found[1]), "may not specify more than 1 handler type")),
    }
    if handler.get("exec").is_some_and(|exec| object::items(exec, "/command").is_empty()) {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        let Some(port) = handler.get(kind).map(|found| found.get("port").cloned().unwrap_or_default()) else {
            continue;
        };
        let field = format!("{path}.{kind}.port");
        match &port {
            Value::Number(number) if number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) => {}
            Value::Number(_) => errors.push(FieldError::invalid(field, port, "must be between 1 and 65535, inclusive")),
            Value::String(name) if names::is_port_name(name) => {}
            Value::String(_) => errors.push(FieldError::invalid(field, port, "must contain at least one letter (a-z)")),
            _ => errors.push(FieldError::required(field, "")),
        }
    }
}
