//! Services: addresses and node ports are given out and kept; nothing routes them here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rand::Rng;
use serde_json::{Value, json};

use super::names;
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::registry;

/// Range of node ports (`--service-node-port-range`).
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;
/// Tries for a random address or port before the range is walked.
const RANDOM_TRIES: usize = 32;

/// Fills in defaults and gives out address and ports.
///
/// # Errors
/// When the ranges are used up or what is asked for is taken.
pub fn admit_create(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    default_service(new);
    // What is wrong anyway is told before anything is given out.
    if validate(new).is_empty() { allocate(api, new) } else { Ok(()) }
}

/// The same for a change; what was given stays.
///
/// # Errors
/// As for [`admit_create`].
pub fn admit_update(api: &Api, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    default_service(new);
    let old_type = object::text(old, "/spec/type");
    drop_what_the_type_had(new, old);
    let kept_type = object::text(new, "/spec/type").to_string();
    if kept_type != "ExternalName" && old_type != "ExternalName" && object::text(new, "/spec/clusterIP").is_empty() {
        for key in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old.pointer(&format!("/spec/{key}")) {
                new["spec"][key] = value.clone();
            }
        }
    }
    let old_ports: Vec<Value> = object::items(old, "/spec/ports").to_vec();
    if matches!(kept_type.as_str(), "NodePort" | "LoadBalancer") {
        for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let before = old_ports
                .iter()
                .find(|other| other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol"));
            if port.get("nodePort").is_none()
                && let Some(number) = before.and_then(|before| before.get("nodePort"))
            {
                port["nodePort"] = number.clone();
            }
        }
    }
    if validate(new).is_empty() { allocate(api, new) } else { Ok(()) }
}

/// Node ports and their policy go with the type that had them, unless they are asked for anew.
fn drop_what_the_type_had(new: &mut Value, old: &Value) {
    let external = |service: &Value| matches!(object::text(service, "/spec/type"), "NodePort" | "LoadBalancer");
    if !external(old) || external(new) {
        return;
    }
    if new.pointer("/spec/externalTrafficPolicy") == old.pointer("/spec/externalTrafficPolicy") {
        object::remove(&mut new["spec"], "externalTrafficPolicy");
    }
    object::remove(&mut new["spec"], "allocateLoadBalancerNodePorts");
    let given: Vec<Value> =
        object::items(old, "/spec/ports").iter().filter_map(|port| port.get("nodePort").cloned()).collect();
    for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port.get("nodePort").is_some_and(|number| given.contains(number)) {
            object::remove(port, "nodePort");
        }
    }
}

fn default_service(new: &mut Value) {
    let spec = object::map(new, "spec");
    if spec.get("clusterIP").and_then(Value::as_str) == Some("") {
        spec.remove("clusterIP");
    }
    spec.entry("type").or_insert_with(|| json!("ClusterIP"));
    spec.entry("sessionAffinity").or_insert_with(|| json!("None"));
    let kind = spec["type"].as_str().unwrap_or_default().to_string();
    if kind != "ExternalName" {
        spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
        // A headless service without a selector has endpoints of any family.
        let headless = spec.get("clusterIP").and_then(Value::as_str) == Some("None");
        let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
        if headless && !selects && !spec.contains_key("ipFamilies") {
            spec.insert("ipFamilies".into(), json!(["IPv4", "IPv6"]));
            spec.entry("ipFamilyPolicy").or_insert_with(|| json!("RequireDualStack"));
        }
        spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
    }
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
        spec.entry("externalTrafficPolicy").or_insert_with(|| json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        spec.entry("allocateLoadBalancerNodePorts").or_insert_with(|| json!(true));
    }
    if spec["sessionAffinity"] == "ClientIP" && !spec.contains_key("sessionAffinityConfig") {
        spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        object::default(port, "protocol", || json!("TCP"));
        let number = port.get("port").cloned().unwrap_or_default();
        let target = port.get("targetPort");
        if target.is_none_or(|target| *target == json!(0) || *target == json!("")) {
            port["targetPort"] = number;
        }
    }
    object::default(new, "status", || json!({"loadBalancer": {}}));
}

/// Defaults of a status: traffic to an address that is given arrives with that address.
pub fn default_status(new: &mut Value) {
    for ingress in new.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut).into_iter().flatten() {
        if !object::text(ingress, "/ip").is_empty() {
            object::default(ingress, "ipMode", || json!("VIP"));
        }
    }
}

fn allocate(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    let services = registry::core("services");
    let others: Vec<Value> = api
        .store
        .list_values(services, None)
        .map_err(|error| ApiError::from_store(error, services, ""))?
        .into_iter()
        .filter(|other| object::uid(other) != object::uid(new))
        .collect();
    let kind = object::text(new, "/spec/type").to_string();
    if kind != "ExternalName" {
        allocate_address(api, new, &others)?;
    }
    let wants_ports = kind == "NodePort"
        || (kind == "LoadBalancer"
            && new.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false));
    if wants_ports { allocate_ports(new, &others) } else { Ok(()) }
}

fn allocate_address(api: &Api, new: &mut Value, others: &[Value]) -> Result<(), ApiError> {
    let services = registry::core("services");
    let name = object::name(new).to_string();
    let used: BTreeSet<&str> = others.iter().map(|other| object::text(other, "/spec/clusterIP")).collect();
    let asked = object::text(new, "/spec/clusterIP").to_string();
    let address = match asked.as_str() {
        "None" => "None".to_string(),
        "" => {
            let free = |address: &String| !used.contains(address.as_str());
            let subnet = api.config.service_subnet;
            // Network and broadcast address are nobody's.
            let random = (0..RANDOM_TRIES).find_map(|_| random_address(subnet).filter(free));
            random
                .or_else(|| subnet.iter().skip(1).map(|address| address.to_string()).find(free))
                .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?
        }
        asked => {
            let outside = asked.parse::<IpAddr>().is_ok_and(|address| !api.config.service_subnet.contains(address));
            // The API's own Service has the address of the machine.
            if outside && (object::namespace(new), name.as_str()) != ("default", "kubernetes") {
                let text =
                    format!("failed to allocate IP {asked}: the provided network does not match the current range");
                return Err(ApiError::invalid(
                    services,
                    &name,
                    &[FieldError::invalid("spec.clusterIPs", json!([asked]), &text)],
                ));
            }
            if used.contains(asked) {
                let error = FieldError::invalid(
                    "spec.clusterIPs",
                    json!([asked]),
                    &format!("failed to allocate IP {asked}: provided IP is already allocated"),
                );
                return Err(ApiError::invalid(services, &name, &[error]));
            }
            asked.to_string()
        }
    };
    let family = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => "IPv6",
        _ => "IPv4",
    };
    let spec = object::map(new, "spec");
    spec.insert("clusterIPs".into(), json!([address]));
    spec.insert("clusterIP".into(), json!(address));
    spec.entry("ipFamilies").or_insert_with(|| json!([family]));
    Ok(())
}

fn random_address(subnet: ipnetwork::IpNetwork) -> Option<String> {
    match subnet {
        ipnetwork::IpNetwork::V4(v4) => {
            let size = v4.size();
            (size > 2)
                .then(|| v4.nth(rand::rng().random_range(1..size - 1)))
                .flatten()
                .map(|address| address.to_string())
        }
        ipnetwork::IpNetwork::V6(v6) => {
            let low: u128 = rand::rng().random::<u16>().into();
            let address = std::net::Ipv6Addr::from(u128::from(v6.network()) | (low + 1));
            v6.contains(address).then(|| address.to_string())
        }
    }
}

fn allocate_ports(new: &mut Value, others: &[Value]) -> Result<(), ApiError> {
    let services = registry::core("services");
    let name = object::name(new).to_string();
    let mut used: BTreeSet<(i64, String)> = others
        .iter()
        .flat_map(|other| object::items(other, "/spec/ports"))
        .filter_map(|port| Some((port.get("nodePort")?.as_i64()?, object::text(port, "/protocol").to_string())))
        .collect();
    for (index, port) in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
    {
        let protocol = object::text(port, "/protocol").to_string();
        let path = format!("spec.ports[{index}].nodePort");
        let refuse = |number: i64, text: &str| {
            Err(ApiError::invalid(services, &name, &[FieldError::invalid(path.as_str(), number, text)]))
        };
        let number = match port.get("nodePort").and_then(Value::as_i64).filter(|number| *number != 0) {
            Some(number) if !NODE_PORTS.contains(&number) => {
                return refuse(
                    number,
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                );
            }
            Some(number) if used.contains(&(number, protocol.clone())) => {
                return refuse(number, "provided port is already allocated");
            }
            Some(number) => number,
            None => {
                let free = |number: &i64| !used.contains(&(*number, protocol.clone()));
                let random = (0..RANDOM_TRIES).map(|_| rand::rng().random_range(NODE_PORTS)).find(free);
                random
                    .or_else(|| NODE_PORTS.clone().find(free))
                    .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?
            }
        };
        used.insert((number, protocol));
        port["nodePort"] = json!(number);
    }
    Ok(())
}

/// Checks a Service.
pub fn validate(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = object::text(new, "/spec/type");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        errors.push(FieldError::unsupported(
            "spec.type",
            kind,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ));
    }
    let ports = object::items(new, "/spec/ports");
    let headless = object::text(new, "/spec/clusterIP") == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && object::text(new, "/spec/externalName").is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else if kind == "ExternalName"
        && !names::is_subdomain(object::text(new, "/spec/externalName").trim_end_matches('.'))
    {
        errors.push(FieldError::invalid(
            "spec.externalName",
            object::text(new, "/spec/externalName"),
            names::SUBDOMAIN_TEXT,
        ));
    }
    validate_ports(ports, kind, &mut errors);
    for (index, address) in object::strings(new, "/spec/externalIPs").into_iter().enumerate() {
        if address.parse::<IpAddr>().is_err() {
            let text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(format!("spec.externalIPs[{index}]"), address, text));
        }
    }
    let affinity = object::text(new, "/spec/sessionAffinity");
    if !matches!(affinity, "ClientIP" | "None") {
        errors.push(FieldError::unsupported("spec.sessionAffinity", affinity, &["ClientIP", "None"]));
    }
    let address = object::text(new, "/spec/clusterIP");
    if !address.is_empty() && address != "None" && address.parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            address,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
    errors
}

fn validate_ports(ports: &[Value], kind: &str, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = object::text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() && !names::is_label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, names::LABEL_TEXT));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let number = object::number(port, "/port").unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(format!("{path}.port"), number, "must be between 1 and 65535, inclusive"));
        }
        let protocol = object::text(port, "/protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::unsupported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
        let application = object::text(port, "/appProtocol");
        if !application.is_empty() && !names::is_qualified_name(application) {
            errors.push(FieldError::invalid(format!("{path}.appProtocol"), application, names::QUALIFIED_TEXT));
        }
        match port.get("targetPort") {
            Some(Value::Number(target)) if !target.as_i64().is_some_and(|target| (1..=65535).contains(&target)) => {
                errors.push(FieldError::invalid(
                    format!("{path}.targetPort"),
                    Value::Number(target.clone()),
                    "must be between 1 and 65535, inclusive",
                ));
            }
            Some(Value::String(target)) => {
                for text in names::port_name_faults(target) {
                    errors.push(FieldError::invalid(format!("{path}.targetPort"), target.as_str(), text));
                }
            }
            _ => {}
        }
        if kind == "ClusterIP" && object::number(port, "/nodePort").is_some_and(|number| number != 0) {
            errors
                .push(FieldError::forbidden(format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
    }
}

/// Checks a change: the address stays.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (before, after) = (object::text(old, "/spec/clusterIP"), object::text(new, "/spec/clusterIP"));
    let fixed = object::text(new, "/spec/type") != "ExternalName"
        && !before.is_empty()
        && object::text(old, "/spec/type") != "ExternalName";
    if fixed && before != after {
        return vec![FieldError::invalid("spec.clusterIPs[0]", json!([after]), "may not change once set")];
    }
    Vec::new()
}
