//! `loopback`: raises `lo`.

use crate::Result;
use crate::kit::{Address, Call, CniError, CniResult, Code, Interface, Plugin, inside};

/// The plugin.
pub(crate) struct Loopback;

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let addresses = set(call, true)?;
        // In a chain the result of the others stays.
        if let Some(previous) = call.previous()? {
            return Ok(previous);
        }
        let interface = Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: call.netns.display().to_string(),
            ..Interface::default()
        };
        let ips = addresses.into_iter().map(|address| Address { address, gateway: None, interface: Some(0) });
        Ok(CniResult { interfaces: vec![interface], ips: ips.collect(), ..CniResult::default() })
    }

    fn del(&self, call: &Call) -> Result<()> {
        if call.has_netns() {
            set(call, false)?;
        }
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        let lo = inside(call, |links| links.find("lo"))?;
        match lo.is_some_and(|link| link.up) {
            true => Ok(()),
            false => Err(CniError::new(Code::Failed, "loopback interface is down")),
        }
    }
}

fn set(call: &Call, up: bool) -> Result<Vec<ipnetwork::IpNetwork>> {
    inside(call, |links| {
        let Some(lo) = links.find("lo")? else { return Ok(vec![]) };
        links.set_up(lo.index, up)?;
        Ok(if up { links.addresses(lo.index)? } else { vec![] })
    })
}
