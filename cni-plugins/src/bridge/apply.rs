//! ADD of `bridge`: bridge, pair, addresses, routes, rules; undone when a step fails.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use orlop_kernel::namespace;
use orlop_kernel::network::{Link, Links, NetworkError, Route, VethPair, read_sysctl, write_sysctl};
use rand::Rng;

use crate::bridge::conf::{BridgeConf, mac_text};
use crate::bridge::{find, plan, spoof, undo};
use crate::kit::{Call, CniError, CniResult, Code, Interface, delegate_add, inside, machine};
use crate::{Result, masquerade};

/// Names that are tried for the machine's end of a pair.
const NAMES_MAX: u32 = 10;
/// How long packets may take to flow through a new pair.
const RUNNING_MAX: Duration = Duration::from_millis(2500);
/// How long the bridge may take to notice its first port.
const BRIDGE_MAX: Duration = Duration::from_millis(1000);
/// How long the kernel may take before it uses an IPv6 address (as upstream's plugins wait).
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Attaches a container.
pub(crate) fn add(call: &Call, conf: &BridgeConf) -> Result<CniResult> {
    let links = machine()?;
    let bridge = ensure_bridge(&links, conf)?;
    let host = make_pair(&links, call, conf, &bridge)?;
    let attached = attach(&links, call, conf, &bridge, &host);
    if attached.is_err() {
        // The error that counts is the first one; what is left is DEL's.
        let _ = undo::del(call);
    }
    attached
}

fn attach(links: &Links, call: &Call, conf: &BridgeConf, bridge: &Link, host: &Link) -> Result<CniResult> {
    let mut result = if conf.has_ipam { delegate_add(call)? } else { CniResult::default() };
    let of_bridge = plan::complete(conf, &mut result);
    // The kernel waits for its readers when rules change; links can be set up meanwhile.
    let (rules, container) = std::thread::scope(|scope| {
        let rules = scope.spawn(|| add_rules(call, conf, &result));
        let container = set_up(links, call, conf, bridge, host, &result, &of_bridge);
        (rules.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), container)
    });
    let container = container?;
    rules?;
    if conf.guards_mac {
        let mac = container.mac.ok_or_else(|| CniError::field("macspoofchk", "the link has no hardware address"))?;
        spoof::add(call, &host.name, mac)?;
    }
    // The bridge's own hardware address may have become another one by its first port.
    let bridge = find(links, &conf.bridge)?.unwrap_or_else(|| bridge.clone());
    let interface = |name: &str, link: &Link, sandbox: String| Interface {
        name: name.into(),
        mac: link.mac.map(mac_text).unwrap_or_default(),
        sandbox,
        ..Interface::default()
    };
    result.interfaces = vec![
        interface(&conf.bridge, &bridge, String::new()),
        interface(&host.name, host, String::new()),
        interface(&call.ifname, &container, call.netns.display().to_string()),
    ];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    let dns = &call.config["dns"];
    if dns.as_object().is_some_and(|fields| !fields.is_empty()) {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Both ends: addresses, routes, the gateway; done when packets flow.
fn set_up(
    links: &Links,
    call: &Call,
    conf: &BridgeConf,
    bridge: &Link,
    host: &Link,
    result: &CniResult,
    of_bridge: &[ipnetwork::IpNetwork],
) -> Result<Link> {
    for address in of_bridge {
        ensure_address(links, conf, bridge, *address)?;
    }
    if !of_bridge.is_empty() {
        enable_forwarding(result)?;
    }
    let container = set_up_container(call, conf, result)?;
    if !conf.disable_container_interface {
        wait_running(links, &host.name, &conf.bridge)?;
        wait_settled(links, call, bridge, result)?;
    }
    Ok(container)
}

fn add_rules(call: &Call, conf: &BridgeConf, result: &CniResult) -> Result<()> {
    if !conf.ip_masq || result.ips.is_empty() {
        return Ok(());
    }
    masquerade::add(call, &result.ips.iter().map(|ip| ip.address).collect::<Vec<_>>())
}

/// The bridge, made where it is missing. Another call may make it at the same time.
fn ensure_bridge(links: &Links, conf: &BridgeConf) -> Result<Link> {
    let broken = |error: NetworkError| CniError::step(format!("the bridge {}", conf.bridge))(&error);
    let bridge = match find(links, &conf.bridge)? {
        Some(bridge) => bridge,
        None => {
            match links.add_bridge(&conf.bridge, conf.mtu, false) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(broken(error)),
                _ => {}
            }
            find(links, &conf.bridge)?.ok_or_else(|| CniError::field("bridge", "is gone again"))?
        }
    };
    if bridge.kind != "bridge" {
        return Err(CniError::field("bridge", format!("{} already exists but is not a bridge", conf.bridge)));
    }
    if conf.promiscuous && !bridge.promiscuous {
        links.set_promiscuous(bridge.index, true).map_err(broken)?;
    }
    // The machine's address comes from here, not from who says it is a router.
    set_sysctl(&format!("ipv6/conf/{}/accept_ra", conf.bridge), "0");
    if !bridge.up {
        links.set_up(bridge.index, true).map_err(broken)?;
    }
    Ok(bridge)
}

/// The pair: its other end is born in the container under its final name, this one in the bridge.
fn make_pair(links: &Links, call: &Call, conf: &BridgeConf, bridge: &Link) -> Result<Link> {
    let netns = namespace::open(&call.netns)
        .map_err(|error| CniError::new(Code::InvalidNetns, format!("CNI_NETNS {:?}: {error}", call.netns)))?;
    let broken = |error: NetworkError| CniError::step(format!("the pair of {}", call.ifname))(&error);
    let mut tries = 0;
    let name = loop {
        let name = format!("veth{:08x}", rand::rng().random::<u32>());
        let pair = VethPair {
            name: &name,
            controller: Some(bridge.index),
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
        if conf.hairpin || conf.isolated {
            links.set_port(host.index, conf.hairpin, conf.isolated).map_err(broken)?;
        }
        set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0");
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
        if !result.ips.is_empty() {
            prepare_for_addresses(ifname, conf, result);
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
                gateway: plan::through(route, result),
                link: link.index,
                priority: route.priority,
                table: route.table.unwrap_or_default(),
                scope: route.scope,
                mtu: route.mtu,
                advertised_mss: route.advmss,
            })?;
        }
        Ok(Some(link))
    })?;
    link.ok_or_else(|| CniError::new(Code::Failed, format!("{ifname} is gone again")))
}

/// What the container's end has to be told before it has its addresses.
fn prepare_for_addresses(ifname: &str, conf: &BridgeConf, result: &CniResult) {
    // Who had the address before is forgotten by its neighbours at once.
    set_sysctl(&format!("ipv4/conf/{ifname}/arp_notify"), "1");
    if !conf.detect_duplicates {
        // The addresses are given out here: nobody has to be asked for a second.
        set_sysctl(&format!("ipv6/conf/{ifname}/accept_dad"), "0");
    }
    if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
        for name in ["lo", ifname] {
            set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0");
        }
        set_sysctl(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1");
        set_sysctl(&format!("ipv6/conf/{ifname}/accept_ra"), "0");
    }
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
    if address.is_ipv6() {
        set_sysctl(&format!("ipv6/conf/{}/disable_ipv6", conf.bridge), "0");
        if !conf.detect_duplicates {
            set_sysctl(&format!("ipv6/conf/{}/accept_dad", conf.bridge), "0");
        }
    }
    // A bridge takes the lowest hardware address of its ports until it is given one: containers would lose their
    // gateway when another comes. Given first, so that a bridge with its address has it for sure.
    if let Some(mac) = find(links, &conf.bridge)?.and_then(|bridge| bridge.mac) {
        links.set_mac(bridge.index, mac).map_err(broken)?;
    }
    links.add_address(bridge.index, address).map_err(broken)
}

/// Packets of the container go on to other links.
fn enable_forwarding(result: &CniResult) -> Result<()> {
    for (file, v6) in [("ipv4/ip_forward", false), ("ipv6/conf/all/forwarding", true)] {
        let wanted = result.ips.iter().any(|ip| ip.address.is_ipv6() == v6);
        if wanted && read_sysctl(file).is_ok_and(|value| value == "0") {
            write_sysctl(file, "1")
                .map_err(|error| CniError::new(Code::Failed, format!("failed to enable forwarding: {error}")))?;
        }
    }
    Ok(())
}

/// Sets what helps but isn't there on every kernel (IPv6 may be off).
fn set_sysctl(file: &str, value: &str) {
    if read_sysctl(file).is_ok_and(|there| there != value) {
        let _ = write_sysctl(file, value);
    }
}

/// Looks until something is so, first often, then more seldom; whether it was so in time.
fn wait_until(limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let (begin, mut pause) = (Instant::now(), Duration::from_micros(200));
    loop {
        if is_so()? {
            return Ok(true);
        }
        if begin.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits until packets flow through the pair: what is sent before is lost, and its sender waits for a second.
fn wait_running(links: &Links, pair: &str, bridge: &str) -> Result<()> {
    let is_running = |name: &str| Ok(find(links, name)?.is_some_and(|link| link.running));
    if !wait_until(RUNNING_MAX, || is_running(pair))? {
        return Err(CniError::new(Code::Failed, format!("{pair} is not running; the pair stays down")));
    }
    // By its first port the bridge begins to run; one with a spanning tree takes its time, and nobody waits for that.
    wait_until(BRIDGE_MAX, || is_running(bridge)).map(|_| ())
}

/// Waits until the kernel uses the container's IPv6 addresses and the gateway's: at once where nobody is asked whether
/// he has them too, but it does so in its own time.
fn wait_settled(links: &Links, call: &Call, bridge: &Link, result: &CniResult) -> Result<()> {
    if !result.ips.iter().any(|ip| ip.address.is_ipv6()) {
        return Ok(());
    }
    let gateways: Vec<_> = result.ips.iter().filter_map(|ip| ip.gateway).collect();
    let mut of_container = Vec::new();
    wait_until(SETTLE_MAX, || {
        let (tentative, taken) = inside(call, |links| match links.find(&call.ifname)? {
            Some(link) => links.unsettled_addresses(link.index),
            None => Ok((vec![], vec![])),
        })?;
        if let Some(address) = taken.first() {
            return Err(CniError::new(Code::Failed, format!("somebody else has the address {address}")));
        }
        of_container = tentative;
        let of_bridge = links.unsettled_addresses(bridge.index);
        let (mut of_bridge, _) = of_bridge.map_err(|error| CniError::step("the bridge")(&error))?;
        of_bridge.retain(|address| gateways.contains(&address.ip()));
        Ok(of_container.is_empty() && of_bridge.is_empty())
    })?;
    // The gateway's may take longer on a bridge with a spanning tree, which is no failure of the container.
    match of_container.first() {
        None => Ok(()),
        Some(address) => {
            let message = format!("the address {address} of {} is still tentative", call.ifname);
            Err(CniError::new(Code::Failed, message))
        }
    }
}
