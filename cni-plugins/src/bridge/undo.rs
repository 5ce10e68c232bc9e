//! DEL and GC of `bridge`: whatever has become of the configuration, what is there goes.

use orlop_kernel::namespace;
use orlop_kernel::network::{Departure, NetworkError};

use crate::bridge::conf::DEFAULT_BRIDGE;
use crate::bridge::{find, spoof};
use crate::kit::{Call, CniError, closing_is_left, delegate, machine};
use crate::{Result, masquerade};

/// Detaches a container: rules and link first, then its addresses, which somebody else may get at once. The kernel waits
/// for the readers of both, which a child of this process sits out.
pub(crate) fn del(call: &Call) -> Result<()> {
    let rules = remove_rules(call);
    // An address whose link is still there stays reserved.
    if call.has_netns() {
        remove_link(call)?
    } else {
        remove_pair(call)?
    }
    let released = if call.has_ipam() { delegate(call, "DEL").map(|_| ()) } else { Ok(()) };
    rules.and(released)
}

/// Removes the container's link, and the machine's end with it.
fn remove_link(call: &Call) -> Result<()> {
    let found = namespace::in_network(&call.netns, || Departure::of(&call.ifname));
    let found = found.map_err(|error| CniError::step("the container's network namespace")(&error))?;
    let gone = found.and_then(depart);
    gone.map_err(|error| CniError::step(format!("in the container of {}", call.container_id))(&error))
}

fn depart(link: Option<Departure>) -> std::result::Result<(), NetworkError> {
    let Some(link) = link else { return Ok(()) };
    let gone = link.carry_out();
    closing_is_left();
    gone
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
            let deleted = Departure::of(&known.name).and_then(depart);
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
