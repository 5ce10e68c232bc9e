//! DEL and GC of `bridge`: whatever has become of the configuration, what is there goes.

use crate::bridge::conf::DEFAULT_BRIDGE;
use crate::bridge::{find, spoof};
use crate::kit::{Call, CniError, delegate, inside, machine};
use crate::{Result, masquerade};

/// Detaches a container: link and rules first, then its addresses, which somebody else may get at once.
pub(crate) fn del(call: &Call) -> Result<()> {
    // The kernel waits for its readers in both; it can do so at the same time.
    let (link, rules) = std::thread::scope(|scope| {
        let rules = scope.spawn(|| remove_rules(call));
        let link = if call.has_netns() { inside(call, |links| links.delete(&call.ifname)) } else { remove_pair(call) };
        (link, rules.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // An address whose link is still there stays reserved.
    link?;
    let released = if call.has_ipam() { delegate(call, "DEL").map(|_| ()) } else { Ok(()) };
    rules.and(released)
}

/// Removes the pair by the machine's end, which only the previous result knows: somebody may keep the namespace alive
/// after its file is gone.
fn remove_pair(call: &Call) -> Result<()> {
    let Ok(Some(previous)) = call.previous() else { return Ok(()) };
    let links = machine()?;
    let bridge = call.config["bridge"].as_str().unwrap_or(DEFAULT_BRIDGE);
    let Some(bridge) = find(&links, bridge)? else { return Ok(()) };
    for known in previous.interfaces.iter().filter(|known| known.sandbox.is_empty()) {
        let port = find(&links, &known.name)?.filter(|link| link.kind == "veth");
        if port.is_some_and(|link| link.controller == Some(bridge.index)) {
            let deleted = links.delete(&known.name);
            deleted.map_err(|error| CniError::step(format!("the pair of {}", call.container_id))(&error))?;
        }
    }
    Ok(())
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
