//! DEL and GC of `bridge`: whatever has become of the configuration, what is there goes.

use crate::bridge::spoof;
use crate::kit::{Call, delegate, inside};
use crate::{Result, masquerade};

/// Detaches a container: link and rules first, then its addresses, which somebody else may get at once.
pub(crate) fn del(call: &Call) -> Result<()> {
    // The kernel waits for its readers in both; it can do so at the same time.
    let (link, rules) = std::thread::scope(|scope| {
        let rules = scope.spawn(|| remove_rules(call));
        let link = if call.has_netns() { inside(call, |links| links.delete(&call.ifname)) } else { Ok(()) };
        (link, rules.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // An address whose link is still there stays reserved.
    link?;
    let released = if call.has_ipam() { delegate(call, "DEL").map(|_| ()) } else { Ok(()) };
    rules.and(released)
}

fn remove_rules(call: &Call) -> Result<()> {
    let masquerade = if call.is_on("ipMasq") { masquerade::remove(call) } else { Ok(()) };
    let spoof = if call.is_on("macspoofchk") { spoof::remove(call) } else { Ok(()) };
    masquerade.and(spoof)
}

/// Removes the rules and addresses of attachments that are not valid.
pub(crate) fn gc(call: &Call) -> Result<()> {
    let valid = call.valid_attachments()?;
    let masquerade = if call.is_on("ipMasq") { masquerade::collect(call, &valid) } else { Ok(()) };
    let spoof = if call.is_on("macspoofchk") { spoof::collect(call, &valid) } else { Ok(()) };
    let released = if call.has_ipam() { delegate(call, "GC").map(|_| ()) } else { Ok(()) };
    masquerade.and(spoof).and(released)
}
