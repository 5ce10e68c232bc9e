//! `bridge`: a pair of links, one end in the container, the other in a bridge.

mod add;
mod conf;
mod gateway;

use orlop_kernel::network::Links;

use crate::kit::{Call, CniError, CniResult, Code, Plugin, delegate};
use crate::loopback::inside;
use crate::{Result, masquerade};
use conf::BridgeConf;

/// The plugin.
pub(crate) struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        add::add(call, &BridgeConf::read(call)?)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let conf = BridgeConf::read(call)?;
        if conf.has_ipam {
            delegate(call, "DEL")?;
        }
        if call.has_netns() {
            inside(call, |links| links.delete(&call.ifname))?;
        }
        if conf.ip_masq {
            masquerade::remove(call)?;
        }
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        let conf = BridgeConf::read(call)?;
        if conf.has_ipam {
            delegate(call, "CHECK")?;
        }
        let wrong = |message: String| Err(CniError::new(Code::Failed, message));
        let Some(previous) = call.previous()? else { return wrong("prevResult: is missing".into()) };
        let links = Links::open().map_err(|error| CniError::step("the machine's links")(&error))?;
        let bridge = find(&links, &conf.bridge)?;
        if bridge.is_none_or(|bridge| bridge.kind != "bridge" || !bridge.up) {
            return wrong(format!("the bridge {} is missing, down or no bridge", conf.bridge));
        }
        let (link, addresses, routes) = inside(call, |links| {
            let Some(link) = links.find(&call.ifname)? else { return Ok((None, vec![], vec![])) };
            let (addresses, routes) = (links.addresses(link.index)?, links.routes(link.index)?);
            Ok((Some(link), addresses, routes))
        })?;
        let Some(link) = link.filter(|link| link.kind == "veth") else {
            return wrong(format!("{} is missing in the container, or no pair", call.ifname));
        };
        let mac = link.mac.map(conf::mac_text).unwrap_or_default();
        let known = previous.interfaces.iter().find(|known| known.name == call.ifname && !known.sandbox.is_empty());
        if known.is_some_and(|known| !known.mac.eq_ignore_ascii_case(&mac)) {
            return wrong(format!("{} has the hardware address {mac}, not the one of prevResult", call.ifname));
        }
        if let Some(ip) = previous.ips.iter().find(|ip| !addresses.contains(&ip.address)) {
            return wrong(format!("{} has lost the address {}", call.ifname, ip.address));
        }
        let missing = previous.routes.iter().find(|route| !routes.iter().any(|there| there.destination == route.dst));
        if let Some(route) = missing {
            return wrong(format!("the route to {} is missing in the container", route.dst));
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let conf = BridgeConf::read(call)?;
        if conf.ip_masq {
            masquerade::collect(call, &call.valid_attachments())?;
        }
        if conf.has_ipam { delegate(call, "GC").map(|_| ()) } else { Ok(()) }
    }

    fn status(&self, call: &Call) -> Result<()> {
        let conf = BridgeConf::read(call)?;
        if conf.has_ipam { delegate(call, "STATUS").map(|_| ()) } else { Ok(()) }
    }
}

/// A link of the machine.
fn find(links: &Links, name: &str) -> Result<Option<orlop_kernel::network::Link>> {
    links.find(name).map_err(|error| CniError::step("the machine's links")(&error))
}
