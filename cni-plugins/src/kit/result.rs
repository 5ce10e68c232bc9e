//! The result of ADD, in the words of every version since 0.3.0.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A link that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) mtu: u32,
    /// The container's namespace; empty on the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An address of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) address: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<std::net::IpAddr>,
    /// Place of its link in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

/// A route of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<std::net::IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) priority: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) table: u32,
}

/// What ADD answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    value.as_object().is_none_or(serde_json::Map::is_empty)
}

impl CniResult {
    /// The answer in a version's words: before 1.0.0 each address says its family.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["cniVersion"] = json!(version);
        if version.starts_with("0.")
            && let Some(ips) = value["ips"].as_array_mut()
        {
            for (entry, ip) in ips.iter_mut().zip(&self.ips) {
                entry["version"] = json!(if ip.address.is_ipv6() { "6" } else { "4" });
            }
        }
        value
    }
}
