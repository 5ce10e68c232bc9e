//! The rules of mapped ports.

use std::net::IpAddr;

use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, PRIORITY_DNAT, PRIORITY_SNAT, Rule, Step};

use crate::kit::{Attachment, Call, attachment_mark, is_stale};
use crate::portmap::conf::PortmapConf;

const TABLE: &str = "cni_hostport";
const HOSTPORTS: &str = "hostports";
const ALL: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const MASQUERADING: &str = "masquerading";

/// The tables, and their chains that have rules of containers.
pub(crate) const PLACES: [(Family, &str, &[&str]); 2] =
    [(Family::Ipv4, TABLE, &[HOSTPORTS, MASQUERADING]), (Family::Ipv6, TABLE, &[HOSTPORTS, MASQUERADING])];

/// Tag of the rules that all containers share, where there are no conditions.
const COMMON_TAG: &str = "common 1";

/// Table and chains, with the rules that all containers share, unless they are there as we make them: to replace them for
/// each container would let everybody wait for those who read the old ones. The conditions of the last call count for all.
pub(crate) fn tables(
    nftables: &mut Nftables,
    family: Family,
    conf: &PortmapConf,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    let mut entry = if family == Family::Ipv6 { conf.conditions_v6.clone() } else { conf.conditions_v4.clone() };
    let tag = if entry.is_empty() { COMMON_TAG } else { "" };
    let mut is_there = !tag.is_empty();
    for chain in [ALL, PREROUTING, OUTPUT] {
        is_there &= matches!(&nftables.rules(family, TABLE, chain)?[..], [rule] if rule.tag == tag);
    }
    if is_there {
        return Ok(());
    }
    entry.extend([Step::IsForHere, Step::Jump(ALL.into())]);
    batch
        .table(family, TABLE, "CNI portmap plugin")
        .chain(family, TABLE, HOSTPORTS)
        .chain(family, TABLE, ALL)
        .flush_chain(family, TABLE, ALL)
        .tagged_rule(family, TABLE, ALL, &[Step::Jump(HOSTPORTS.into())], "", tag);
    for (chain, hook) in [(PREROUTING, Hook::Prerouting), (OUTPUT, Hook::Output)] {
        batch
            .nat_chain(family, TABLE, chain, hook, PRIORITY_DNAT)
            .flush_chain(family, TABLE, chain)
            .tagged_rule(family, TABLE, chain, &entry, "", tag);
    }
    batch.nat_chain(family, TABLE, MASQUERADING, Hook::Postrouting, PRIORITY_SNAT);
    Ok(())
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
            rules.push((MASQUERADING, vec![Step::SourceIn(address, whole, true), to.clone(), Step::Masquerade]));
            if !v6 {
                rules.push((MASQUERADING, vec![Step::SourceIn([127, 0, 0, 1].into(), 32, true), to, Step::Masquerade]));
            }
        }
    }
    rules
}

/// Adds the rules of a container. Their comment is the container, by which upstream's plugin removes them; their tag
/// says more precisely whose they are.
pub(crate) fn add(family: Family, conf: &PortmapConf, address: IpAddr, call: &Call, batch: &mut Batch) {
    let tag = tag(call);
    for (chain, steps) in rules(family, conf, address) {
        batch.tagged_rule(family, TABLE, chain, &steps, &call.container_id, &tag);
    }
}

fn tag(call: &Call) -> String {
    attachment_mark(&call.network, &call.ifname, &call.container_id)
}

/// How many rules a container has to have.
pub(crate) fn count(family: Family, conf: &PortmapConf, address: IpAddr) -> usize {
    rules(family, conf, address).len()
}

/// Whether a rule is one of an attachment: by its tag, or by its comment where upstream's plugin made it.
fn is_of(rule: &Rule, call: &Call) -> bool {
    if rule.tag.is_empty() { rule.comment == call.container_id } else { rule.tag == tag(call) }
}

/// Removes the rules of an attachment.
pub(crate) fn remove(
    nftables: &mut Nftables,
    family: Family,
    call: &Call,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    remove_where(nftables, family, batch, |rule| is_of(rule, call))
}

/// Removes the rules of this network's attachments that are not valid. Those without a tag may be of any network.
pub(crate) fn collect(
    nftables: &mut Nftables,
    family: Family,
    network: &str,
    valid: &[Attachment],
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    remove_where(nftables, family, batch, |rule| is_stale(&rule.tag, network, valid))
}

fn remove_where(
    nftables: &mut Nftables,
    family: Family,
    batch: &mut Batch,
    is_old: impl Fn(&Rule) -> bool,
) -> Result<(), NftablesError> {
    for chain in [HOSTPORTS, MASQUERADING] {
        for rule in nftables.rules(family, TABLE, chain)?.iter().filter(|rule| is_old(rule)) {
            batch.delete_rule(family, TABLE, chain, rule.handle);
        }
    }
    Ok(())
}

/// How many rules of an attachment are there.
pub(crate) fn find(nftables: &mut Nftables, family: Family, call: &Call) -> Result<usize, NftablesError> {
    let mut found = 0;
    for chain in [HOSTPORTS, MASQUERADING] {
        found += nftables.rules(family, TABLE, chain)?.iter().filter(|rule| is_of(rule, call)).count();
    }
    Ok(found)
}
