//! `host-local`: addresses out of ranges, kept as files that upstream's plugin reads and writes just the same.

mod conf;
mod range;
mod store;

use crate::Result;
use crate::kit::{Address, Call, CniError, CniResult, Code, Plugin};
use conf::HostLocalConf;
use range::RangeSet;
use store::Store;

/// The plugin.
pub(crate) struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, call: &Call) -> Result<CniResult> {
        let conf = HostLocalConf::read(call)?;
        let store = Store::open(&conf.data_dir, &call.network)?;
        let mut ips = Vec::new();
        for (index, set) in conf.ranges.iter().enumerate() {
            match allocate(&store, call, &conf, set, index) {
                Ok(ip) => ips.push(ip),
                Err(error) => {
                    // All or nothing.
                    store.release(&call.container_id, &call.ifname)?;
                    let message = format!("failed to allocate for range {index}: {}", error.message);
                    return Err(CniError { message, ..error });
                }
            }
        }
        let asked: Vec<_> = conf.asked.iter().filter(|ip| !ips.iter().any(|got| got.address.ip() == **ip)).collect();
        if !asked.is_empty() {
            store.release(&call.container_id, &call.ifname)?;
            let names: Vec<String> = asked.iter().map(ToString::to_string).collect();
            return Err(CniError::new(
                Code::Failed,
                format!("failed to allocate all requested IPs: {}", names.join(" ")),
            ));
        }
        let dns = conf.resolv_conf.as_deref().map(conf::read_resolv_conf).transpose()?.unwrap_or_default();
        Ok(CniResult { ips, routes: conf.routes, dns, ..CniResult::default() })
    }

    fn del(&self, call: &Call) -> Result<()> {
        let conf = HostLocalConf::read(call)?;
        Store::open(&conf.data_dir, &call.network)?.release(&call.container_id, &call.ifname)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let conf = HostLocalConf::read(call)?;
        match Store::open(&conf.data_dir, &call.network)?.has(&call.container_id, &call.ifname)? {
            true => Ok(()),
            false => Err(CniError::new(
                Code::Failed,
                format!("host-local: Failed to find address added by container {}", call.container_id),
            )),
        }
    }

    fn gc(&self, call: &Call) -> Result<()> {
        let conf = HostLocalConf::read(call)?;
        Store::open(&conf.data_dir, &call.network)?.collect(&call.valid_attachments())
    }

    fn status(&self, call: &Call) -> Result<()> {
        HostLocalConf::read(call).map(|_| ())
    }
}

/// One address out of a set: the one asked for, or the next free one after the last.
fn allocate(store: &Store, call: &Call, conf: &HostLocalConf, set: &RangeSet, index: usize) -> Result<Address> {
    let (id, ifname) = (&call.container_id, &call.ifname);
    let reserve = |ip| store.reserve(id, ifname, ip, index);
    if let Some(ip) = conf.asked.iter().find(|ip| set.find(**ip).is_some()) {
        let range = set.find(*ip).ok_or_else(|| CniError::new(Code::Failed, "no range"))?;
        if range.gateway == Some(*ip) {
            return Err(CniError::new(Code::Failed, format!("requested ip {ip} is subnet's gateway")));
        }
        if !reserve(*ip)? {
            let message = format!("requested IP address {ip} is not available in range set {set}");
            return Err(CniError::new(Code::Failed, message));
        }
        return Ok(range.address(*ip));
    }
    if let Some(ip) = store.owned(id, ifname)?.into_iter().find(|ip| set.find(*ip).is_some()) {
        let message = format!("{ip} has been allocated to {id}, duplicate allocation is not allowed");
        return Err(CniError::new(Code::Failed, message));
    }
    for (range, ip) in set.candidates(store.last(index)) {
        if reserve(ip)? {
            return Ok(range.address(ip));
        }
    }
    Err(CniError::new(Code::Failed, format!("no IP addresses available in range set: {set}")))
}
