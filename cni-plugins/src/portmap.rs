//! `portmap`: ports of the machine that lead to a container; tables `cni_hostport` of nf_tables, as upstream's plugin
//! has them.

mod conf;
mod rules;

use orlop_kernel::network::{Links, write_sysctl};
use orlop_kernel::nftables::{Family, Nftables, NftablesError};

use crate::Result;
use crate::kit::{Call, CniError, CniResult, Code, Plugin};
use conf::PortmapConf;

/// The plugin.
pub(crate) struct Portmap;

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let conf = PortmapConf::read(call)?;
        let Some(previous) = call.previous()? else {
            return Err(CniError::field("prevResult", "must be called as chained plugin"));
        };
        if conf.mappings.is_empty() {
            return Ok(previous);
        }
        for (family, address) in targets(call, &previous) {
            let id = &call.container_id;
            let changed = Nftables::open().change::<NftablesError>(|nftables| {
                let mut batch = rules::tables(family);
                // What an earlier try left is replaced.
                rules::remove(nftables, family, id, &mut batch)?;
                rules::add(family, &conf, address, id, &mut batch);
                Ok(batch)
            });
            changed.map_err(|error| CniError::step("map the ports")(&error))?;
            if family == Family::Ipv4 && conf.snat {
                route_localnet(address)?;
            }
        }
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<()> {
        for family in [Family::Ipv4, Family::Ipv6] {
            let changed = Nftables::open().change::<NftablesError>(|nftables| {
                let mut batch = Default::default();
                rules::remove(nftables, family, &call.container_id, &mut batch)?;
                Ok(batch)
            });
            changed.map_err(|error| CniError::step("unmap the ports")(&error))?;
        }
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        let conf = PortmapConf::read(call)?;
        let previous = call.previous()?.unwrap_or_default();
        for (family, address) in targets(call, &previous) {
            let wanted = rules::count(family, &conf, address);
            let found = rules::find(&mut Nftables::open(), family, &call.container_id);
            let found = found.map_err(|error| CniError::step("look at the ports")(&error))?;
            if found < wanted {
                let message = format!("{found} of {wanted} rules for the ports of {} are there", call.container_id);
                return Err(CniError::new(Code::Failed, message));
            }
        }
        Ok(())
    }

    fn status(&self, call: &Call) -> Result<()> {
        PortmapConf::read(call).map(|_| ())
    }
}

/// The first address of each family that the container has.
fn targets(call: &Call, previous: &CniResult) -> Vec<(Family, std::net::IpAddr)> {
    let of_container = |ip: &&crate::kit::Address| {
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
fn route_localnet(address: std::net::IpAddr) -> Result<()> {
    let broken = |error: orlop_kernel::network::NetworkError| CniError::step("the machine's links")(&error);
    let links = Links::open().map_err(broken)?;
    for link in links.list().map_err(broken)? {
        let leads = links.addresses(link.index).map_err(broken)?.iter().any(|network| network.contains(address));
        if leads && link.name != "lo" {
            let file = format!("ipv4/conf/{}/route_localnet", link.name);
            write_sysctl(&file, "1").map_err(|error| CniError::new(Code::Failed, format!("set {file}: {error}")))?;
        }
    }
    Ok(())
}
