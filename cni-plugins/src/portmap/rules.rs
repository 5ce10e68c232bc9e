//! The rules of mapped ports.

use std::net::IpAddr;

use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, PRIORITY_DNAT, PRIORITY_SNAT, Step};

use crate::portmap::conf::PortmapConf;

const TABLE: &str = "cni_hostport";
const HOSTPORTS: &str = "hostports";
const ALL: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const MASQUERADING: &str = "masquerading";

/// Table and chains, with the rules that all containers share.
pub(crate) fn tables(family: Family) -> Batch {
    let mut batch = Batch::default();
    batch
        .table(family, TABLE, "CNI portmap plugin")
        .chain(family, TABLE, HOSTPORTS)
        .chain(family, TABLE, ALL)
        .flush_chain(family, TABLE, ALL)
        .rule(family, TABLE, ALL, &[Step::Jump(HOSTPORTS)], "")
        .nat_chain(family, TABLE, PREROUTING, Hook::Prerouting, PRIORITY_DNAT)
        .flush_chain(family, TABLE, PREROUTING)
        .rule(family, TABLE, PREROUTING, &[Step::IsForHere, Step::Jump(ALL)], "")
        .nat_chain(family, TABLE, OUTPUT, Hook::Output, PRIORITY_DNAT)
        .flush_chain(family, TABLE, OUTPUT)
        .rule(family, TABLE, OUTPUT, &[Step::IsForHere, Step::Jump(ALL)], "")
        .nat_chain(family, TABLE, MASQUERADING, Hook::Postrouting, PRIORITY_SNAT);
    batch
}

/// The rules of one container's address: chain and steps.
fn rules(family: Family, conf: &PortmapConf, address: IpAddr) -> Vec<(&'static str, Vec<Step>)> {
    let v6 = family == Family::Ipv6;
    let whole = if v6 { 128 } else { 32 };
    let mut rules = Vec::new();
    for mapping in conf.mappings.iter().filter(|mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv6() == v6)) {
        let mut steps: Vec<Step> = mapping.host_ip.map(|ip| Step::DestinationIn(ip, whole, true)).into_iter().collect();
        steps.extend([
            Step::IsProtocol(mapping.protocol),
            Step::IsDestinationPort(mapping.host_port),
            Step::Dnat(address, mapping.container_port),
        ]);
        rules.push((HOSTPORTS, steps));
    }
    if conf.snat && !rules.is_empty() {
        let to = Step::DestinationIn(address, whole, true);
        if conf.masq_all {
            rules.push((MASQUERADING, vec![to, Step::Masquerade]));
        } else {
            // A container that calls itself by the machine's port, and the machine's own loopback.
            rules.push((MASQUERADING, vec![Step::SourceIn(address, whole), to.clone(), Step::Masquerade]));
            if !v6 {
                rules.push((MASQUERADING, vec![Step::SourceIn([127, 0, 0, 1].into(), 32), to, Step::Masquerade]));
            }
        }
    }
    rules
}

/// Adds the rules of a container.
pub(crate) fn add(family: Family, conf: &PortmapConf, address: IpAddr, id: &str, batch: &mut Batch) {
    for (chain, steps) in rules(family, conf, address) {
        batch.rule(family, TABLE, chain, &steps, id);
    }
}

/// How many rules a container has.
pub(crate) fn count(family: Family, conf: &PortmapConf, address: IpAddr) -> usize {
    rules(family, conf, address).len()
}

/// Removes the rules of a container.
pub(crate) fn remove(
    nftables: &mut Nftables,
    family: Family,
    id: &str,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    for chain in [HOSTPORTS, MASQUERADING] {
        for rule in nftables.rules(family, TABLE, chain)?.iter().filter(|rule| rule.comment == id) {
            batch.delete_rule(family, TABLE, chain, rule.handle);
        }
    }
    Ok(())
}

/// How many rules of a container are there.
pub(crate) fn find(nftables: &mut Nftables, family: Family, id: &str) -> Result<usize, NftablesError> {
    let mut found = 0;
    for chain in [HOSTPORTS, MASQUERADING] {
        found += nftables.rules(family, TABLE, chain)?.iter().filter(|rule| rule.comment == id).count();
    }
    Ok(found)
}
