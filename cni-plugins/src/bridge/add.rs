//! ADD of `bridge`: bridge, pair, addresses, routes, masquerade; undone when a step fails.

use std::os::fd::AsFd;
use std::time::Duration;

use orlop_kernel::namespace;
use orlop_kernel::network::{Link, Links, NetworkError, Route, VethPair, write_sysctl};
use rand::Rng;

use crate::bridge::conf::{BridgeConf, mac_text};
use crate::bridge::{find, gateway};
use crate::kit::{Call, CniError, CniResult, Code, Interface, delegate, delegate_add};
use crate::loopback::inside;
use crate::{Result, masquerade};

/// Names that are tried for the machine's end of a pair.
const NAMES_MAX: u32 = 10;
/// How often the pair is looked at until packets flow, each time waiting a millisecond longer: about 0.5 s.
const LOOKS_MAX: u64 = 31;

/// Attaches a container.
pub(crate) fn add(call: &Call, conf: &BridgeConf) -> Result<CniResult> {
    if conf.is_default_gateway && !conf.has_ipam {
        return Err(CniError::field("isDefaultGateway", "needs an IPAM plugin"));
    }
    let links = Links::open().map_err(|error| CniError::step("the machine's links")(&error))?;
    let bridge = ensure_bridge(&links, conf)?;
    let host = make_pair(&links, call, conf, &bridge)?;
    let attached = attach(&links, call, conf, &bridge, &host);
    if attached.is_err() {
        // The pair goes with either end; the addresses by DEL of the IPAM plugin.
        let _ = links.delete(&host.name);
        if conf.has_ipam {
            let _ = delegate(call, "DEL");
        }
        if conf.ip_masq {
            let _ = masquerade::remove(call);
        }
    }
    attached
}

fn attach(links: &Links, call: &Call, conf: &BridgeConf, bridge: &Link, host: &Link) -> Result<CniResult> {
    let mut result = if conf.has_ipam { delegate_add(call)? } else { CniResult::default() };
    let of_bridge = gateway::complete(conf, &mut result);
    let container = set_up_container(call, conf, &result)?;
    let mut bridge = bridge.clone();
    if !of_bridge.is_empty() {
        for address in &of_bridge {
            ensure_address(links, conf, &bridge, *address)?;
        }
        // A bridge takes the lowest hardware address of its ports until it is given one.
        bridge = find(links, &conf.bridge)?.unwrap_or(bridge);
        if let Some(mac) = bridge.mac {
            links.set_mac(bridge.index, mac).map_err(|error| CniError::step("the bridge")(&error))?;
        }
        enable_forwarding(&result)?;
    }
    if conf.ip_masq {
        masquerade::add(call, &result.ips.iter().map(|ip| ip.address).collect::<Vec<_>>())?;
    }
    if !conf.disable_container_interface {
        wait_running(links, &host.name)?;
    }
    let interface = |name: &str, link: &Link, sandbox: String| Interface {
        name: name.into(),
        mac: link.mac.map(mac_text).unwrap_or_default(),
        mtu: 0,
        sandbox,
    };
    result.interfaces = vec![
        interface(&conf.bridge, &bridge, String::new()),
        interface(&host.name, host, String::new()),
        interface(&call.ifname, &container, call.netns.display().to_string()),
    ];
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    let dns = &call.config["dns"];
    if dns.as_object().is_some_and(|fields| !fields.is_empty()) {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// The bridge, made where it is missing. Another call may make it at the same time.
fn ensure_bridge(links: &Links, conf: &BridgeConf) -> Result<Link> {
    let broken = |error: NetworkError| CniError::step(format!("the bridge {}", conf.bridge))(&error);
    match links.add_bridge(&conf.bridge, conf.mtu, false) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(broken(error)),
        _ => {}
    }
    let bridge = find(links, &conf.bridge)?.ok_or_else(|| CniError::field("bridge", "is gone again"))?;
    if bridge.kind != "bridge" {
        return Err(CniError::field("bridge", format!("{} already exists but is not a bridge", conf.bridge)));
    }
    if conf.promiscuous && !bridge.promiscuous {
        links.set_promiscuous(bridge.index, true).map_err(broken)?;
    }
    let _ = write_sysctl(&format!("ipv6/conf/{}/accept_ra", conf.bridge), "0");
    if !bridge.up {
        links.set_up(bridge.index, true).map_err(broken)?;
    }
    Ok(bridge)
}

/// The pair: its other end is born in the container under its final name.
fn make_pair(links: &Links, call: &Call, conf: &BridgeConf, bridge: &Link) -> Result<Link> {
    let netns = namespace::open(&call.netns)
        .map_err(|error| CniError::new(Code::Failed, format!("failed to open netns {:?}: {error}", call.netns)))?;
    let broken = |error: NetworkError| CniError::step(format!("the pair of {}", call.ifname))(&error);
    let mut tries = 0;
    let name = loop {
        let name = format!("veth{:08x}", rand::rng().random::<u32>());
        let pair = VethPair {
            name: &name,
            peer: &call.ifname,
            peer_namespace: netns.as_fd(),
            peer_mac: conf.mac,
            mtu: conf.mtu,
        };
        match links.add_veth(&pair) {
            Ok(()) => break name,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                tries += 1;
                let taken = inside(call, |links| links.find(&call.ifname))?.is_some();
                if taken || tries == NAMES_MAX {
                    let message = format!("container veth name provided ({}) already exists", call.ifname);
                    return Err(CniError::new(Code::Failed, message));
                }
            }
            Err(error) => return Err(broken(error)),
        }
    };
    let made = || -> Result<Link> {
        let host = find(links, &name)?.ok_or_else(|| CniError::new(Code::Failed, format!("{name} is gone again")))?;
        links.set_controller(host.index, bridge.index).map_err(broken)?;
        if conf.hairpin || conf.isolated {
            links.set_port(host.index, conf.hairpin, conf.isolated).map_err(broken)?;
        }
        let _ = write_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
        Ok(host)
    };
    made().inspect_err(|_| {
        let _ = links.delete(&name);
    })
}

/// Addresses and routes of the container's end.
fn set_up_container(call: &Call, conf: &BridgeConf, result: &CniResult) -> Result<Link> {
    let ifname = &call.ifname;
    let link = inside(call, |links| {
        let Some(link) = links.find(ifname)? else { return Ok(None) };
        let _ = write_sysctl(&format!("ipv4/conf/{ifname}/arp_notify"), "1");
        if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
            for name in ["lo", ifname] {
                let _ = write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0");
            }
            let _ = write_sysctl(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1");
        }
        if !conf.detect_duplicates {
            // The addresses are ours alone: nobody has to be asked for a second.
            let _ = write_sysctl(&format!("ipv6/conf/{ifname}/accept_dad"), "0");
        }
        for ip in &result.ips {
            links.add_address(link.index, ip.address)?;
        }
        if !conf.disable_container_interface {
            links.set_up(link.index, true)?;
        }
        for route in &result.routes {
            links.add_route(&Route {
                destination: route.dst,
                gateway: gateway::through(route, result),
                link: link.index,
                priority: route.priority,
                table: route.table,
            })?;
        }
        Ok(Some(link))
    })?;
    link.ok_or_else(|| CniError::new(Code::Failed, format!("{ifname} is gone again")))
}

/// The gateway's address on the bridge.
fn ensure_address(links: &Links, conf: &BridgeConf, bridge: &Link, address: ipnetwork::IpNetwork) -> Result<()> {
    let broken = |error: NetworkError| CniError::step(format!("the bridge {}", conf.bridge))(&error);
    let there = links.addresses(bridge.index).map_err(broken)?;
    if there.contains(&address) {
        return Ok(());
    }
    for other in there.iter().filter(|other| other.is_ipv6() == address.is_ipv6()) {
        let overlap = other.contains(address.ip()) || address.contains(other.ip());
        // IPv6 bridges may have several addresses; IPv4 ones have one.
        if address.is_ipv6() && !overlap {
            continue;
        }
        if !conf.force_address {
            let message = format!("{:?} already has an IP address different from {address}: {other}", conf.bridge);
            return Err(CniError::new(Code::Failed, message));
        }
        links.delete_address(bridge.index, *other).map_err(broken)?;
    }
    if address.is_ipv6() && !conf.detect_duplicates {
        let _ = write_sysctl(&format!("ipv6/conf/{}/accept_dad", conf.bridge), "0");
    }
    links.add_address(bridge.index, address).map_err(broken)
}

/// Packets of the container go on to other links.
fn enable_forwarding(result: &CniResult) -> Result<()> {
    for (file, v6) in [("ipv4/ip_forward", false), ("ipv6/conf/all/forwarding", true)] {
        if result.ips.iter().any(|ip| ip.address.is_ipv6() == v6) {
            write_sysctl(file, "1")
                .map_err(|error| CniError::new(Code::Failed, format!("failed to enable forwarding: {error}")))?;
        }
    }
    Ok(())
}

/// Waits until packets flow through the pair: what is sent before is lost, and its sender waits for a second.
fn wait_running(links: &Links, name: &str) -> Result<()> {
    for look in 0..LOOKS_MAX {
        if find(links, name)?.is_some_and(|link| link.running) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(look));
    }
    Err(CniError::new(Code::Failed, format!("{name} is not running; the pair stays down")))
}
