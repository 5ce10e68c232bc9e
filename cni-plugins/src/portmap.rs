//! `portmap`: ports of the machine that lead to a container; tables `cni_hostport` of nf_tables, as upstream's plugin
//! has them.

mod condition;
mod conf;
mod rules;

use std::net::IpAddr;

use orlop_kernel::network::{NetworkError, forget_udp_flows, write_sysctl};
use orlop_kernel::nftables::{Batch, Family, Nftables};

use crate::Result;
use crate::kit::{Address, Call, CniError, CniResult, Code, Plugin, change, machine};
use conf::PortmapConf;

pub(crate) use rules::PLACES;

/// The families whose ports are mapped.
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The plugin.
pub(crate) struct Portmap;

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let conf = PortmapConf::read(call)?;
        let previous = call.require_previous()?;
        if conf.mappings.is_empty() {
            return Ok(previous);
        }
        for (family, address) in targets(call, &previous) {
            change("map the ports", |nftables| {
                let mut batch = Batch::default();
                rules::tables(nftables, family, &conf, &mut batch)?;
                // What an earlier try left is replaced.
                rules::remove(nftables, family, call, &mut batch)?;
                rules::add(family, &conf, address, call, &mut batch);
                Ok(batch)
            })?;
            if family == Family::Ipv4 && conf.snat {
                route_localnet(address)?;
            }
        }
        forget(&conf)?;
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<()> {
        for family in FAMILIES {
            change("unmap the ports", |nftables| {
                let mut batch = Batch::default();
                rules::remove(nftables, family, call, &mut batch)?;
                Ok(batch)
            })?;
        }
        // Ports that can't be read any more have no flows that could be looked for.
        PortmapConf::read(call).map_or(Ok(()), |conf| forget(&conf))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let conf = PortmapConf::read(call)?;
        let previous = call.require_previous()?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        for (family, address) in targets(call, &previous) {
            let wanted = rules::count(family, &conf, address);
            let found = rules::find(&mut Nftables::open(), family, call);
            let found = found.map_err(|error| CniError::step("look at the ports")(&error))?;
            if found < wanted {
                let message = format!("{found} of {wanted} rules for the ports of {} are there", call.container_id);
                return Err(CniError::new(Code::Failed, message));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let valid = call.valid_attachments()?;
        for family in FAMILIES {
            change("collect the ports", |nftables| {
                let mut batch = Batch::default();
                rules::collect(nftables, family, &call.network, &valid, &mut batch)?;
                Ok(batch)
            })?;
        }
        Ok(())
    }

    fn status(&self, call: &Call) -> Result<()> {
        PortmapConf::read(call).map(|_| ())
    }
}

/// The first address of each family that the container has.
fn targets(call: &Call, previous: &CniResult) -> Vec<(Family, IpAddr)> {
    let of_container = |ip: &&Address| {
        let Some(interface) = ip.interface.and_then(|place| previous.interfaces.get(place)) else { return true };
        interface.sandbox.is_empty() || interface.name == call.ifname
    };
    let mut found = Vec::new();
    for (family, v6) in [(Family::Ipv4, false), (Family::Ipv6, true)] {
        let first = previous.ips.iter().filter(of_container).find(|ip| ip.address.is_ipv6() == v6);
        found.extend(first.map(|ip| (family, ip.address.ip())));
    }
    found
}

/// Lets connections from the machine's own loopback leave by the link that leads to the container.
fn route_localnet(address: IpAddr) -> Result<()> {
    let broken = |error: NetworkError| CniError::step(format!("the way to {address}"))(&error);
    let links = machine()?;
    let index = links.link_towards(address).map_err(broken)?;
    let link = index.map(|index| links.find_index(index)).transpose().map_err(broken)?.flatten();
    let Some(link) = link.filter(|link| link.name != "lo") else { return Ok(()) };
    let file = format!("ipv4/conf/{}/route_localnet", link.name);
    write_sysctl(&file, "1").map_err(|error| CniError::new(Code::Failed, format!("set {file}: {error}")))
}

/// Forgets UDP flows to the mapped ports: they would go on to where the port led before.
fn forget(conf: &PortmapConf) -> Result<()> {
    let ports = conf.udp_ports();
    if ports.is_empty() {
        return Ok(());
    }
    let forgotten = forget_udp_flows(&ports);
    forgotten.map(|_| ()).map_err(|error| CniError::step("forget the UDP flows of the ports")(&error))
}
