//! The result of ADD, in the words of every version since 0.3.0. What this program doesn't know of a result passes
//! through it.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A link that was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// The container's namespace; empty on the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

/// An address of the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) address: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<std::net::IpAddr>,
    /// Place of its link in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A route of the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<std::net::IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) advmss: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

impl Route {
    /// A route through a gateway.
    pub(crate) fn through(dst: IpNetwork, gateway: std::net::IpAddr) -> Route {
        Route { dst, gw: Some(gateway), mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// What ADD answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CniResult {
    pub(crate) cni_version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ips: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) routes: Vec<Route>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(crate) dns: Value,
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(Map::is_empty)
}

impl CniResult {
    /// The answer in a version's words. Before 1.0.0 each address says its family, links have no more than name,
    /// address and namespace, and routes no more than destination and gateway.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let mut result = self.clone();
        result.cni_version = version.into();
        if !version.starts_with("0.") {
            return serde_json::to_value(&result).unwrap_or_default();
        }
        result.interfaces.iter_mut().for_each(|interface| interface.other.clear());
        for route in &mut result.routes {
            (route.mtu, route.advmss, route.priority, route.table, route.scope) = (0, 0, 0, None, None);
        }
        let mut value = serde_json::to_value(&result).unwrap_or_default();
        if is_empty(&self.dns) {
            value["dns"] = json!({});
        }
        if let Some(ips) = value["ips"].as_array_mut() {
            for (entry, ip) in ips.iter_mut().zip(&self.ips) {
                entry["version"] = json!(if ip.address.is_ipv6() { "6" } else { "4" });
            }
        }
        value
    }

    /// The link of the container in the result.
    pub(crate) fn container_interface(&self, ifname: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|known| known.name == ifname && !known.sandbox.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_passes_through_in_its_version() {
        let given = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": "/n", "mtu": 1400, "pciID": "0000:00:01.0"}],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1300, "priority": 5, "table": 7, "scope": 253}],
            "dns": {"nameservers": ["10.0.0.1"]},
        });
        let result = CniResult::deserialize(&given).unwrap();
        assert_eq!(result.to_json("1.1.0"), given);
        assert_eq!(
            result.to_json("0.4.0"),
            json!({
                "cniVersion": "0.4.0",
                "interfaces": [{"name": "eth0", "sandbox": "/n"}],
                "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0, "version": "4"}],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dns": {"nameservers": ["10.0.0.1"]},
            })
        );
    }
}
