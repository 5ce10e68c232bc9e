//! `macspoofchk`: frames of a container that don't come from its hardware address are thrown away. Table `bridge nat`,
//! chains and comments as upstream's plugin has them, so that either can undo the other's.

use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, Rule, Step};

use crate::Result;
use crate::kit::{Attachment, Call, CniError, attachment_mark, change, is_stale};

const TABLE: &str = "nat";
const PREROUTING: &str = "PREROUTING";
/// `NF_BR_PRI_NAT_DST_BRIDGED`.
const PRIORITY: i32 = -300;
const COMMENT: &str = "macspoofchk-";
const CHAIN: &str = "cni-br-iface-";

/// The comment of an attachment's rules.
fn comment(call: &Call) -> String {
    format!("{COMMENT}{}-{}", call.container_id, call.ifname)
}

/// Its chains: the one of its link, and the one that looks at hardware addresses.
fn chains(comment: &str) -> (String, String) {
    let name = format!("{CHAIN}{}", comment.strip_prefix(COMMENT).unwrap_or(comment));
    (name.clone(), format!("{name}-mac"))
}

/// Lets frames from the machine's end of a pair pass only when they come from the container's hardware address.
pub(crate) fn add(call: &Call, link: &str, mac: [u8; 6]) -> Result<()> {
    let comment = comment(call);
    let tag = attachment_mark(&call.network, &call.ifname, &call.container_id);
    let (of_link, of_mac) = chains(&comment);
    change("macspoofchk: guard the hardware address", |nftables| {
        let mut batch = Batch::default();
        batch
            .table(Family::Bridge, TABLE, "")
            .filter_chain(Family::Bridge, TABLE, PREROUTING, Hook::Prerouting, PRIORITY)
            .chain(Family::Bridge, TABLE, &of_link)
            .flush_chain(Family::Bridge, TABLE, &of_link)
            .chain(Family::Bridge, TABLE, &of_mac)
            .flush_chain(Family::Bridge, TABLE, &of_mac);
        // What an earlier try left is replaced.
        for rule in rules(nftables)?.iter().filter(|rule| rule.comment == comment) {
            batch.delete_rule(Family::Bridge, TABLE, PREROUTING, rule.handle);
        }
        for (chain, steps) in [
            (PREROUTING, vec![Step::CameBy(link.into(), true), Step::Jump(of_link.clone())]),
            (&*of_link, vec![Step::Jump(of_mac.clone())]),
            (&*of_mac, vec![Step::FrameFrom(mac), Step::Return]),
            (&*of_mac, vec![Step::Drop]),
        ] {
            batch.tagged_rule(Family::Bridge, TABLE, chain, &steps, &comment, &tag);
        }
        Ok(batch)
    })
}

fn rules(nftables: &mut Nftables) -> std::result::Result<Vec<Rule>, NftablesError> {
    nftables.rules(Family::Bridge, TABLE, PREROUTING)
}

/// Removes the rules of an attachment.
pub(crate) fn remove(call: &Call) -> Result<()> {
    let comment = comment(call);
    remove_where(|rule| rule.comment == comment)
}

/// Removes the rules of this network's attachments that are not valid.
pub(crate) fn collect(call: &Call, valid: &[Attachment]) -> Result<()> {
    remove_where(|rule| is_stale(&rule.tag, &call.network, valid))
}

/// Whether the guard of an attachment is there.
pub(crate) fn check(call: &Call) -> Result<bool> {
    let comment = comment(call);
    let rules =
        rules(&mut Nftables::open()).map_err(|error| CniError::step("macspoofchk: look at the rules")(&error))?;
    Ok(rules.iter().any(|rule| rule.comment == comment))
}

/// The rules that lead to chains go with the chains, in one batch: there is no half of it.
fn remove_where(is_old: impl Fn(&Rule) -> bool) -> Result<()> {
    change("macspoofchk: remove the guard of the hardware address", |nftables| {
        let mut batch = Batch::default();
        let old: Vec<Rule> = rules(nftables)?.into_iter().filter(|rule| is_old(rule)).collect();
        for rule in &old {
            batch.delete_rule(Family::Bridge, TABLE, PREROUTING, rule.handle);
        }
        let mut comments: Vec<&str> = old.iter().map(|rule| rule.comment.as_str()).collect();
        comments.dedup();
        for comment in comments {
            let (of_link, of_mac) = chains(comment);
            batch.delete_chain(Family::Bridge, TABLE, &of_link).delete_chain(Family::Bridge, TABLE, &of_mac);
        }
        Ok(batch)
    })
}
