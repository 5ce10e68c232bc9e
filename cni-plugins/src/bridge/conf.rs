//! The configuration of `bridge`.

use serde::Deserialize;

use crate::Result;
use crate::kit::{Call, CniError, Code, is_ifname};

/// The bridge of a configuration that names none.
pub(crate) const DEFAULT_BRIDGE: &str = "cni0";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: i64,
    #[serde(default)]
    vlan_trunk: Option<serde_json::Value>,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    mac: Option<String>,
}

fn default_bridge() -> String {
    DEFAULT_BRIDGE.into()
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct BridgeConf {
    pub(crate) bridge: String,
    pub(crate) is_gateway: bool,
    pub(crate) is_default_gateway: bool,
    pub(crate) force_address: bool,
    pub(crate) ip_masq: bool,
    pub(crate) mtu: u32,
    pub(crate) hairpin: bool,
    pub(crate) promiscuous: bool,
    pub(crate) detect_duplicates: bool,
    pub(crate) disable_container_interface: bool,
    pub(crate) isolated: bool,
    /// Frames from other hardware addresses are thrown away.
    pub(crate) guards_mac: bool,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) has_ipam: bool,
}

impl BridgeConf {
    /// Reads and checks it.
    pub(crate) fn read(call: &Call) -> Result<BridgeConf> {
        let raw: Raw = call.conf()?;
        if raw.vlan != 0 || raw.vlan_trunk.is_some() {
            let field = if raw.vlan != 0 { "vlan" } else { "vlanTrunk" };
            let message = format!("{field}: not supported by this plugin; leave it out, or use upstream's bridge");
            return Err(CniError::new(Code::UnsupportedField, message));
        }
        if raw.ip_masq_backend.as_deref().is_some_and(|backend| backend != "nftables") {
            let message = "only nftables is there; set it so, or leave it out";
            return Err(CniError::field("ipMasqBackend", message));
        }
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(CniError::field(
                "promiscMode",
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        let has_ipam = call.has_ipam();
        if has_ipam && raw.disable_container_interface {
            return Err(CniError::field(
                "disableContainerInterface",
                "cannot use IPAM when DisableContainerInterface flag is set",
            ));
        }
        if raw.is_default_gateway && !has_ipam {
            return Err(CniError::field("isDefaultGateway", "needs an IPAM plugin"));
        }
        if !is_ifname(&raw.bridge) {
            return Err(CniError::field("bridge", format!("{:?} is no name of a link", raw.bridge)));
        }
        let runtime = call.config["runtimeConfig"]["mac"].as_str();
        let by_args = call.args.iter().find(|(key, _)| key == "MAC").map(|(_, value)| value.as_str());
        let mac = runtime.or(call.config["args"]["cni"]["mac"].as_str()).or(by_args).or(raw.mac.as_deref());
        Ok(BridgeConf {
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            ip_masq: raw.ip_masq,
            mtu: raw.mtu,
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            detect_duplicates: raw.enabledad,
            disable_container_interface: raw.disable_container_interface,
            isolated: raw.port_isolation,
            guards_mac: raw.macspoofchk,
            mac: mac.map(parse_mac).transpose()?,
            has_ipam,
            bridge: raw.bridge,
        })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.ok_or_else(|| CniError::field("mac", format!("{text:?} is no hardware address")))
}

/// A hardware address as text.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: serde_json::Value) -> Result<BridgeConf> {
        BridgeConf::read(&Call { config, ..Call::default() })
    }

    #[test]
    fn wrong_fields_are_named() {
        for (config, field) in [
            (json!({"vlan": 5}), "vlan"),
            (json!({"isDefaultGateway": true}), "isDefaultGateway"),
            (json!({"hairpinMode": true, "promiscMode": true}), "promiscMode"),
            (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), "disableContainerInterface"),
            (json!({"bridge": "a name with spaces"}), "bridge"),
            (json!({"mac": "nonsense"}), "mac"),
            (json!({"ipMasqBackend": "iptables"}), "ipMasqBackend"),
            (json!({"mtu": "large"}), "mtu: "),
        ] {
            assert!(read(config.clone()).unwrap_err().message.contains(field), "{config}");
        }
        let conf = read(json!({"isDefaultGateway": true, "ipam": {"type": "x"}, "mac": "02:00:00:00:00:0A"})).unwrap();
        assert!(conf.is_gateway && conf.bridge == "cni0");
        assert_eq!(mac_text(conf.mac.unwrap()), "02:00:00:00:00:0a");
    }
}
