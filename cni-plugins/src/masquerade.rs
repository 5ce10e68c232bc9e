//! Masquerade of what containers send out of their network: table `inet cni_plugins_masquerade`, as upstream's plugins
//! have it, so that either can undo the other's.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, PRIORITY_SNAT, Rule, Step};

use crate::Result;
use crate::kit::{Attachment, Call, CniError, attachment_mark, change, is_stale};

const TABLE: &str = "cni_plugins_masquerade";
const CHECKS: &str = "masq_checks";
const POSTROUTING: &str = "postrouting";

/// Masquerades what the addresses of a container send beyond their own networks.
pub(crate) fn add(call: &Call, addresses: &[IpNetwork]) -> Result<()> {
    let mark = mark(call);
    let comment = format!("{mark}, net: {}, if: {}, id: {}", call.network, call.ifname, call.container_id);
    change("masquerade", |nftables| {
        let mut batch = Batch::default();
        if !has_common_rules(&nftables.rules(Family::Inet, TABLE, POSTROUTING)?) {
            add_common_rules(&mut batch);
        }
        // What an earlier try left is replaced.
        for rule in nftables.rules(Family::Inet, TABLE, CHECKS)?.iter().filter(|rule| rule.comment.starts_with(&mark)) {
            batch.delete_rule(Family::Inet, TABLE, CHECKS, rule.handle);
        }
        for address in addresses {
            let (family, whole) = if address.is_ipv6() { (Family::Ipv6, 128) } else { (Family::Ipv4, 32) };
            let steps = [
                Step::IsFamily(family),
                Step::SourceIn(address.ip(), whole, true),
                Step::DestinationIn(address.network(), address.prefix(), false),
                Step::Masquerade,
            ];
            batch.rule(Family::Inet, TABLE, CHECKS, &steps, &comment);
        }
        Ok(batch)
    })
}

/// Tags of the rules that all containers share, in their order. Other rules get other tags.
const COMMON_TAGS: [&str; 3] = ["common 1: multicast of IPv4", "common 1: multicast of IPv6", "common 1: checks"];

/// Whether the rules that all containers share are there, as we make them: to replace them for each container would let
/// everybody wait for those who read the old ones.
fn has_common_rules(rules: &[Rule]) -> bool {
    rules.iter().map(|rule| &*rule.tag).eq(COMMON_TAGS)
}

/// Table and chains with the rules that all containers share, in place of those that are there.
fn add_common_rules(batch: &mut Batch) {
    batch
        .table(Family::Inet, TABLE, "CNI plugins masquerading")
        .chain(Family::Inet, TABLE, CHECKS)
        .nat_chain(Family::Inet, TABLE, POSTROUTING, Hook::Postrouting, PRIORITY_SNAT)
        .flush_chain(Family::Inet, TABLE, POSTROUTING);
    let multicast = |family, group: IpAddr, prefix| {
        vec![Step::IsFamily(family), Step::DestinationIn(group, prefix, true), Step::Return]
    };
    let rules = [
        multicast(Family::Ipv4, [224, 0, 0, 0].into(), 4),
        multicast(Family::Ipv6, [0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
        vec![Step::Goto(CHECKS.into())],
    ];
    for (steps, tag) in rules.iter().zip(COMMON_TAGS) {
        batch.tagged_rule(Family::Inet, TABLE, POSTROUTING, steps, "", tag);
    }
}

/// Removes the rules of an attachment.
pub(crate) fn remove(call: &Call) -> Result<()> {
    let mark = mark(call);
    remove_where(|comment| comment.starts_with(&mark))
}

/// Removes the rules of this network's attachments that are not valid.
pub(crate) fn collect(call: &Call, valid: &[Attachment]) -> Result<()> {
    remove_where(|comment| is_stale(comment, &call.network, valid))
}

/// Whether the rules of an attachment are there, one for each of its addresses.
pub(crate) fn check(call: &Call, addresses: usize) -> Result<bool> {
    let mark = mark(call);
    let rules = Nftables::open().rules(Family::Inet, TABLE, CHECKS);
    let rules = rules.map_err(|error| CniError::step("look at the masquerade")(&error))?;
    Ok(rules.iter().filter(|rule| rule.comment.starts_with(&mark)).count() >= addresses)
}

/// The table, and its chain that has rules of containers.
pub(crate) const PLACE: (Family, &str, &[&str]) = (Family::Inet, TABLE, &[CHECKS]);

fn remove_where(is_old: impl Fn(&str) -> bool) -> Result<()> {
    change("undo the masquerade", |nftables| {
        let mut batch = Batch::default();
        for rule in nftables.rules(Family::Inet, TABLE, CHECKS)?.iter().filter(|rule| is_old(&rule.comment)) {
            batch.delete_rule(Family::Inet, TABLE, CHECKS, rule.handle);
        }
        Ok(batch)
    })
}

fn mark(call: &Call) -> String {
    attachment_mark(&call.network, &call.ifname, &call.container_id)
}
