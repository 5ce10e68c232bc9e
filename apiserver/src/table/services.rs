//! Tables of services and of what stands behind them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::column::{AGE, Layout, NAME, age, column, name};
use crate::object;

/// Entries shown of a list before the rest is only counted.
const SHOWN_MAX: usize = 3;

/// Services.
pub(super) static SERVICES: Layout = Layout {
    columns: &[
        NAME,
        column("Type", "How the service is reached."),
        column("Cluster-IP", "Address inside the cluster; None for a headless service."),
        column("External-IP", "Addresses or the name outside the cluster."),
        column("Port(s)", "Ports, with node ports behind a colon, and protocols."),
        AGE,
        column("Selector", "Labels of the pods behind the service.").wide(),
    ],
    cells: service_cells,
};

/// Endpoints.
pub(super) static ENDPOINTS: Layout = Layout {
    columns: &[NAME, column("Endpoints", "Addresses and ports behind the service of this name."), AGE],
    cells: |object, now| vec![name(object), json!(endpoints(object)), age(object, now)],
};

/// Endpoint slices.
pub(super) static ENDPOINT_SLICES: Layout = Layout {
    columns: &[
        NAME,
        column("AddressType", "Kind of the addresses in this slice."),
        column("Ports", "Ports of every endpoint; unset is any."),
        column("Endpoints", "Addresses in this slice."),
        AGE,
    ],
    cells: |object, now| {
        let addresses =
            object::items(object, "/endpoints").iter().flat_map(|endpoint| object::strings(endpoint, "/addresses"));
        vec![
            name(object),
            json!(object::text(object, "/addressType")),
            json!(shortened(object::items(object, "/ports").iter().map(slice_port))),
            json!(shortened(addresses.map(String::from))),
            age(object, now),
        ]
    },
};

fn service_cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let cluster_ips = object::strings(service, "/spec/clusterIPs");
    let ports: Vec<String> = object::items(service, "/spec/ports").iter().map(service_port).collect();
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    let selector: Vec<String> = selector
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let or_none = |text: String| if text.is_empty() { "<none>".to_string() } else { text };
    vec![
        name(service),
        json!(object::text(service, "/spec/type")),
        json!(cluster_ips.first().copied().unwrap_or("<none>")),
        json!(external(service)),
        json!(or_none(ports.join(","))),
        age(service, now),
        json!(or_none(selector.join(","))),
    ]
}

fn service_port(port: &Value) -> String {
    let (number, protocol) = (object::number(port, "/port").unwrap_or(0), object::text(port, "/protocol"));
    match object::number(port, "/nodePort") {
        Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
        _ => format!("{number}/{protocol}"),
    }
}

fn external(service: &Value) -> String {
    let kind = object::text(service, "/spec/type");
    if kind == "ExternalName" {
        return object::text(service, "/spec/externalName").into();
    }
    let mut found: Vec<&str> = Vec::new();
    if kind == "LoadBalancer" {
        let given = object::items(service, "/status/loadBalancer/ingress").iter();
        let given: BTreeSet<&str> = given
            .map(|ingress| {
                Some(object::text(ingress, "/ip"))
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or(object::text(ingress, "/hostname"))
            })
            .filter(|text| !text.is_empty())
            .collect();
        found.extend(given);
    }
    found.extend(object::strings(service, "/spec/externalIPs"));
    match (found.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".into(),
        (true, _) => "<none>".into(),
        (false, _) => found.join(","),
    }
}

fn slice_port(port: &Value) -> String {
    match (object::number(port, "/port"), object::text(port, "/name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".into(),
        (None, name) => name.into(),
    }
}

fn endpoints(object: &Value) -> String {
    let mut found = Vec::new();
    for subset in object::items(object, "/subsets") {
        let addresses: Vec<&str> =
            object::items(subset, "/addresses").iter().map(|address| object::text(address, "/ip")).collect();
        let ports = object::items(subset, "/ports");
        if ports.is_empty() {
            found.extend(addresses.iter().map(ToString::to_string));
        }
        for port in ports {
            let number = object::number(port, "/port").unwrap_or(0);
            found.extend(
                addresses
                    .iter()
                    .map(|ip| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }),
            );
        }
    }
    let more = found.len().saturating_sub(SHOWN_MAX);
    found.truncate(SHOWN_MAX);
    match (found.is_empty(), more) {
        (true, _) => "<none>".into(),
        (_, 0) => found.join(","),
        _ => format!("{} + {more} more...", found.join(",")),
    }
}

/// The first few of a list and how many more there are.
fn shortened(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(SHOWN_MAX);
    items.truncate(SHOWN_MAX);
    match (items.is_empty(), more) {
        (true, _) => "<unset>".into(),
        (_, 0) => items.join(","),
        _ => format!("{} + {more} more...", items.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_in_a_row() {
        let service = json!({
            "metadata": {"name": "s"},
            "spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"b": "2", "a": "1"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        });
        let expected = json!(["s", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "<unknown>", "a=1,b=2"]);
        assert_eq!(json!(service_cells(&service, Timestamp::UNIX_EPOCH)), expected);
        assert_eq!(external(&json!({"spec": {"type": "LoadBalancer"}})), "<pending>");
        assert_eq!(external(&json!({"spec": {"type": "ExternalName", "externalName": "a.b"}})), "a.b");
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(shortened(["a", "b", "c", "d", "e"].into_iter().map(String::from)), "a,b,c + 2 more...");
        let subset = json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}], "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&subset), "1.1.1.1:80,[::1]:80");
    }
}
