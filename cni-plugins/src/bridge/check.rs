//! CHECK of `bridge`: what the previous result says against what is there.

use orlop_kernel::network::Link;

use crate::bridge::conf::{BridgeConf, mac_text};
use crate::bridge::{find, plan, spoof};
use crate::kit::{Call, CniError, CniResult, Code, delegate, inside, machine};
use crate::{Result, masquerade};

fn wrong<T>(message: String) -> Result<T> {
    Err(CniError::new(Code::Failed, message))
}

/// Checks an attachment.
pub(crate) fn check(call: &Call, conf: &BridgeConf) -> Result<()> {
    if conf.has_ipam {
        delegate(call, "CHECK")?;
    }
    let previous = call.require_previous()?;
    let bridge = check_machine(call, conf, &previous)?;
    if conf.is_gateway {
        let links = machine()?;
        let there = links.addresses(bridge.index).map_err(|error| CniError::step("the bridge")(&error))?;
        let wanted = previous.ips.iter().filter_map(|ip| plan::of_bridge(ip.address, ip.gateway));
        if let Some(address) = wanted.into_iter().find(|address| !there.contains(address)) {
            return wrong(format!("the bridge {} has lost the address {address}", conf.bridge));
        }
    }
    check_container(call, &previous)?;
    if conf.ip_masq && !masquerade::check(call, previous.ips.len())? {
        return wrong(format!("the masquerade of {} is missing", call.container_id));
    }
    if conf.guards_mac && !spoof::check(call)? {
        return wrong(format!("macspoofchk: the rules of {} are missing", call.container_id));
    }
    Ok(())
}

/// The bridge, and the machine's end of the pair as its port.
fn check_machine(call: &Call, conf: &BridgeConf, previous: &CniResult) -> Result<Link> {
    let links = machine()?;
    let Some(bridge) = find(&links, &conf.bridge)?.filter(|bridge| bridge.kind == "bridge" && bridge.up) else {
        return wrong(format!("the bridge {} is missing, down or no bridge", conf.bridge));
    };
    if conf.promiscuous && !bridge.promiscuous {
        return wrong(format!("the bridge {} is not promiscuous", conf.bridge));
    }
    let mut of_machine = previous.interfaces.iter().filter(|known| known.sandbox.is_empty());
    let Some(known) = of_machine.find(|known| known.name != conf.bridge) else {
        return wrong("prevResult: interfaces: the machine's end of the pair is missing".into());
    };
    let Some(port) = find(&links, &known.name)? else {
        return wrong(format!("the link {} of {} is missing", known.name, call.container_id));
    };
    if port.controller != Some(bridge.index) || port.kind != "veth" {
        return wrong(format!("the link {} is no port of the bridge {}", known.name, conf.bridge));
    }
    if (port.hairpin, port.isolated) != (conf.hairpin, conf.isolated) {
        return wrong(format!("the port {} is not as hairpinMode and portIsolation say", known.name));
    }
    Ok(bridge)
}

/// The container's end with its addresses and routes.
fn check_container(call: &Call, previous: &CniResult) -> Result<()> {
    let (link, addresses, routes) = inside(call, |links| {
        let Some(link) = links.find(&call.ifname)? else { return Ok((None, vec![], vec![])) };
        let (addresses, routes) = (links.addresses(link.index)?, links.routes(link.index)?);
        Ok((Some(link), addresses, routes))
    })?;
    let Some(link) = link.filter(|link| link.kind == "veth") else {
        return wrong(format!("{} is missing in the container, or no pair", call.ifname));
    };
    let mac = link.mac.map(mac_text).unwrap_or_default();
    match previous.container_interface(&call.ifname) {
        Some(known) if !known.mac.is_empty() && !known.mac.eq_ignore_ascii_case(&mac) => {
            return wrong(format!("{} has the hardware address {mac}, not {} of prevResult", call.ifname, known.mac));
        }
        Some(_) => {}
        None => return wrong(format!("prevResult: interfaces: {} is missing", call.ifname)),
    }
    if let Some(ip) = previous.ips.iter().find(|ip| !addresses.contains(&ip.address)) {
        return wrong(format!("{} has lost the address {}", call.ifname, ip.address));
    }
    let same = |route: &&crate::kit::Route| {
        let gateway = plan::through(route, previous);
        routes.iter().any(|there| there.destination == route.dst && there.gateway == gateway)
    };
    match previous.routes.iter().find(|route| !same(route)) {
        Some(route) => wrong(format!("the route to {} is missing in the container", route.dst)),
        None => Ok(()),
    }
}
