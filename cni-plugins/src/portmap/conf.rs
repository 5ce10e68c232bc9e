//! The configuration of `portmap`.

use std::net::IpAddr;

use serde::Deserialize;

use orlop_kernel::nftables::Step;

use crate::Result;
use crate::kit::{Call, CniError, Code};
use crate::portmap::condition;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    backend: Option<String>,
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default)]
    conditions_v4: Option<Vec<String>>,
    #[serde(default)]
    conditions_v6: Option<Vec<String>>,
    #[serde(default)]
    masq_all: bool,
    #[serde(default)]
    mark_masq_bit: Option<i64>,
    #[serde(default)]
    external_set_mark_chain: Option<String>,
    #[serde(default)]
    runtime_config: RawRuntime,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRuntime {
    port_mappings: Vec<RawMapping>,
}

/// Upstream reads names without regard to case, and containerd begins them with capitals.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMapping {
    #[serde(alias = "HostPort")]
    host_port: i64,
    #[serde(alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// A port of the machine and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    /// Number of the protocol.
    pub(crate) protocol: u8,
    /// Only this address of the machine.
    pub(crate) host_ip: Option<IpAddr>,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct PortmapConf {
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) snat: bool,
    /// Everything that comes through a port comes from the machine.
    pub(crate) masq_all: bool,
    /// What a connection has to be to be looked at.
    pub(crate) conditions_v4: Vec<Step>,
    pub(crate) conditions_v6: Vec<Step>,
}

impl PortmapConf {
    /// Reads and checks it.
    pub(crate) fn read(call: &Call) -> Result<PortmapConf> {
        let raw: Raw = call.conf()?;
        if raw.backend.as_deref().is_some_and(|backend| backend != "nftables") {
            return Err(CniError::field("backend", "only nftables is there; set it so, or leave it out"));
        }
        for (field, given) in [
            ("markMasqBit", raw.mark_masq_bit.is_some()),
            ("externalSetMarkChain", raw.external_set_mark_chain.is_some()),
        ] {
            if given {
                let message = format!("{field}: is of the iptables backend, and only nftables is there; leave it out");
                return Err(CniError::new(Code::UnsupportedField, message));
            }
        }
        let conditions = |field: &str, given: Option<Vec<String>>, v6| {
            condition::parse(&given.unwrap_or_default(), v6).map_err(|text| CniError::field(field, text))
        };
        let conditions_v4 = conditions("conditionsV4", raw.conditions_v4, false)?;
        let conditions_v6 = conditions("conditionsV6", raw.conditions_v6, true)?;
        let mut mappings = Vec::new();
        for (place, mapping) in raw.runtime_config.port_mappings.iter().enumerate() {
            let field = format!("runtimeConfig.portMappings[{place}]");
            // Not every port of a pod is one of the machine.
            if mapping.host_port == 0 {
                continue;
            }
            mappings.push(read_mapping(&field, mapping)?);
        }
        let snat = raw.snat.unwrap_or(true);
        Ok(PortmapConf { mappings, snat, masq_all: raw.masq_all, conditions_v4, conditions_v6 })
    }

    /// The machine's ports that are mapped for UDP.
    pub(crate) fn udp_ports(&self) -> Vec<u16> {
        self.mappings.iter().filter(|mapping| mapping.protocol == UDP).map(|mapping| mapping.host_port).collect()
    }
}

fn read_mapping(field: &str, mapping: &RawMapping) -> Result<Mapping> {
    let port = |name: &str, port: i64| {
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| CniError::field(&format!("{field}.{name}"), "has to be 1 to 65535"))
    };
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => 6,
        "udp" => UDP,
        "sctp" => 132,
        other => {
            return Err(CniError::field(&format!("{field}.protocol"), format!("{other:?} is not tcp, udp or sctp")));
        }
    };
    let host_ip: Option<IpAddr> = match mapping.host_ip.as_str() {
        "" => None,
        text => {
            let ip = text.parse::<IpAddr>();
            Some(ip.map_err(|_| CniError::field(&format!("{field}.hostIP"), format!("{text:?} is no address")))?)
        }
    };
    Ok(Mapping {
        host_port: port("hostPort", mapping.host_port)?,
        container_port: port("containerPort", mapping.container_port)?,
        protocol,
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mapping: serde_json::Value) -> Result<PortmapConf> {
        let config = json!({"runtimeConfig": {"portMappings": [mapping]}});
        PortmapConf::read(&Call { config, ..Call::default() })
    }

    #[test]
    fn mappings() {
        let good =
            read(json!({"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "0.0.0.0"})).unwrap();
        assert_eq!(good.mappings, [Mapping { host_port: 80, container_port: 8080, protocol: 17, host_ip: None }]);
        let capital = json!({"HostPort": 80, "ContainerPort": 8080, "Protocol": "udp", "HostIP": "0.0.0.0"});
        assert_eq!(read(capital).unwrap().mappings, good.mappings);
        assert!(read(json!({"hostPort": 0, "containerPort": 8080})).unwrap().mappings.is_empty());
        for (mapping, field) in [
            (json!({"hostPort": 70000, "containerPort": 1}), "hostPort"),
            (json!({"hostPort": 1, "containerPort": 0}), "containerPort"),
            (json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}), "protocol"),
            (json!({"hostPort": 1, "containerPort": 1, "hostIP": "x"}), "hostIP"),
        ] {
            assert!(read(mapping.clone()).unwrap_err().message.contains(field), "{mapping}");
        }
        for (config, field) in [
            (json!({"backend": "iptables"}), "backend"),
            (json!({"markMasqBit": 5}), "markMasqBit"),
            (json!({"externalSetMarkChain": "X"}), "externalSetMarkChain"),
            (json!({"conditionsV4": ["-d", "10.0.0.1"]}), "conditionsV4"),
            (json!({"conditionsV6": ["ct state new"]}), "conditionsV6"),
        ] {
            let read = PortmapConf::read(&Call { config: config.clone(), ..Call::default() });
            assert!(read.unwrap_err().message.contains(field), "{config}");
        }
    }
}
