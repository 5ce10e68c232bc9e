//! Masquerade of what containers send out of their network: table `inet cni_plugins_masquerade`, as upstream's plugins
//! have it, so that either can undo the other's.

use ipnetwork::IpNetwork;
use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, PRIORITY_SNAT, Step};

use crate::Result;
use crate::kit::{Attachment, Call, CniError, attachment_mark, is_stale};

const TABLE: &str = "cni_plugins_masquerade";
const CHECKS: &str = "masq_checks";
const POSTROUTING: &str = "postrouting";

/// Masquerades what the addresses of a container send beyond their own networks.
pub(crate) fn add(call: &Call, addresses: &[IpNetwork]) -> Result<()> {
    let mark = mark(call);
    let comment = format!("{mark}, net: {}, if: {}, id: {}", call.network, call.ifname, call.container_id);
    let changed = Nftables::open().change::<NftablesError>(|nftables| {
        let mut batch = Batch::default();
        batch
            .table(Family::Inet, TABLE, "CNI plugins masquerading")
            .chain(Family::Inet, TABLE, CHECKS)
            .nat_chain(Family::Inet, TABLE, POSTROUTING, Hook::Postrouting, PRIORITY_SNAT)
            .flush_chain(Family::Inet, TABLE, POSTROUTING);
        for (family, multicast, prefix) in [(Family::Ipv4, "224.0.0.0", 4), (Family::Ipv6, "ff00::", 8)] {
            let Ok(multicast) = multicast.parse() else { continue };
            let steps = [Step::IsFamily(family), Step::DestinationIn(multicast, prefix, true), Step::Return];
            batch.rule(Family::Inet, TABLE, POSTROUTING, &steps, "");
        }
        batch.rule(Family::Inet, TABLE, POSTROUTING, &[Step::Goto(CHECKS.into())], "");
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
    });
    changed.map_err(|error| CniError::step("masquerade")(&error))
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
    let changed = Nftables::open().change::<NftablesError>(|nftables| {
        let mut batch = Batch::default();
        for rule in nftables.rules(Family::Inet, TABLE, CHECKS)?.iter().filter(|rule| is_old(&rule.comment)) {
            batch.delete_rule(Family::Inet, TABLE, CHECKS, rule.handle);
        }
        Ok(batch)
    });
    changed.map_err(|error| CniError::step("undo the masquerade")(&error))
}

fn mark(call: &Call) -> String {
    attachment_mark(&call.network, &call.ifname, &call.container_id)
}
