//! What gateways and routes follow from the addresses of a container: pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::bridge::conf::BridgeConf;
use crate::kit::{CniResult, Route};

/// Fills in gateways and default routes; the addresses that the bridge has to have.
pub(crate) fn complete(conf: &BridgeConf, result: &mut CniResult) -> Vec<IpNetwork> {
    let mut addresses = Vec::new();
    for ip in &mut result.ips {
        if ip.gateway.is_none() && conf.is_gateway {
            ip.gateway = first(ip.address);
        }
        let Some(gateway) = ip.gateway.filter(|_| conf.is_gateway) else { continue };
        if let Some(address) = self::of_bridge(ip.address, Some(gateway))
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
        let all: IpAddr = if gateway.is_ipv6() { [0u8; 16].into() } else { [0u8; 4].into() };
        let has_default = |route: &Route| route.dst.prefix() == 0 && route.dst.is_ipv6() == gateway.is_ipv6();
        if conf.is_default_gateway
            && !result.routes.iter().any(has_default)
            && let Ok(dst) = IpNetwork::new(all, 0)
        {
            result.routes.push(Route::through(dst, gateway));
        }
    }
    addresses
}

/// The address of the bridge that is the gateway of a container's address.
pub(crate) fn of_bridge(address: IpNetwork, gateway: Option<IpAddr>) -> Option<IpNetwork> {
    IpNetwork::new(gateway?, address.prefix()).ok()
}

/// The first address of a network after its own.
fn first(network: IpNetwork) -> Option<IpAddr> {
    match network.network() {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// Whom a route goes through: its own gateway, or that of the address of its family.
pub(crate) fn through(route: &Route, result: &CniResult) -> Option<IpAddr> {
    let of_family = || result.ips.iter().find(|ip| ip.address.is_ipv6() == route.dst.is_ipv6());
    route.gw.or_else(|| of_family().and_then(|ip| ip.gateway))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kit::{Address, Call};

    #[test]
    fn gateways_follow_from_addresses() {
        let conf = |config| BridgeConf::read(&Call { config, ..Call::default() }).unwrap();
        let result = || CniResult {
            ips: ["10.1.0.5/16", "fd00::5/64"]
                .map(|address| Address { address: address.parse().unwrap(), gateway: None, interface: None })
                .into(),
            ..CniResult::default()
        };
        let mut plain = result();
        assert!(complete(&conf(json!({})), &mut plain).is_empty());
        assert_eq!(plain, result());
        let mut gateway = result();
        let of_bridge = complete(&conf(json!({"isDefaultGateway": true, "ipam": {"type": "x"}})), &mut gateway);
        assert_eq!(of_bridge.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.1/16", "fd00::1/64"]);
        assert_eq!(gateway.routes.len(), 2);
        assert_eq!(through(&gateway.routes[1], &gateway).unwrap().to_string(), "fd00::1");
    }
}
