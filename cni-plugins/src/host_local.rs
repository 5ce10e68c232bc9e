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
        let dns = conf.resolv_conf.as_deref().map(conf::read_resolv_conf).transpose()?.unwrap_or_default();
        let store = Store::open(&conf.data_dir, &call.network)?;
        let mut ips = Vec::new();
        let allocated = allocate_all(&store, call, &conf, &mut ips);
        if allocated.is_err() {
            // All or nothing; what the attachment had before stays.
            for ip in &ips {
                store.give_back(ip.address.ip())?;
            }
        }
        allocated.map(|()| CniResult { ips, routes: conf.routes, dns, ..CniResult::default() })
    }

    fn del(&self, call: &Call) -> Result<()> {
        // Addresses are given back whatever has become of the ranges in the configuration.
        match Store::open_if_there(&conf::data_dir(call), &call.network)? {
            Some(store) => store.release(&call.container_id, &call.ifname),
            None => Ok(()),
        }
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
        let valid = call.valid_attachments()?;
        match Store::open_if_there(&conf::data_dir(call), &call.network)? {
            Some(store) => store.collect(&valid),
            None => Ok(()),
        }
    }

    fn status(&self, call: &Call) -> Result<()> {
        HostLocalConf::read(call).map(|_| ())
    }
}

/// One address out of each set; those that were reserved are in the list also when there is an error.
fn allocate_all(store: &Store, call: &Call, conf: &HostLocalConf, ips: &mut Vec<Address>) -> Result<()> {
    for (index, set) in conf.ranges.iter().enumerate() {
        let ip = allocate(store, call, conf, set, index).map_err(|error| {
            let message = format!("failed to allocate for range {index}: {}", error.message);
            CniError { message, ..error }
        })?;
        ips.push(ip);
    }
    let left: Vec<String> = conf
        .asked
        .iter()
        .filter(|ip| !ips.iter().any(|got| got.address.ip() == **ip))
        .map(ToString::to_string)
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::Failed, format!("failed to allocate all requested IPs: {}", left.join(" "))))
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
