//! `bridge`: a pair of links, one end in the container, the other in a bridge.

mod apply;
mod check;
mod conf;
mod plan;
mod spoof;
mod undo;

use orlop_kernel::network::{Link, Links};

use crate::Result;
use crate::kit::{Call, CniError, CniResult, Plugin, delegate};
use conf::BridgeConf;

/// The plugin.
pub(crate) struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult> {
        apply::add(call, &BridgeConf::read(call)?)
    }

    fn del(&self, call: &Call) -> Result<()> {
        undo::del(call)
    }

    fn check(&self, call: &Call) -> Result<()> {
        check::check(call, &BridgeConf::read(call)?)
    }

    fn gc(&self, call: &Call) -> Result<()> {
        undo::gc(call)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let conf = BridgeConf::read(call)?;
        if conf.has_ipam { delegate(call, "STATUS").map(|_| ()) } else { Ok(()) }
    }
}

/// A link of the machine.
fn find(links: &Links, name: &str) -> Result<Option<Link>> {
    links.find(name).map_err(|error| CniError::step("the machine's links")(&error))
}
