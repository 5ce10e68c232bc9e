//! Flows that the kernel remembers (conntrack).
//!
//! A UDP flow keeps the translation that it began with as long as packets come: one that began before a port was
//! mapped, or while it led to a container that is gone, has to be forgotten to follow the rules of today.

use super::{NetworkError, failed};
use crate::netlink::{DUMP, Message, NESTED, Refusal, Talk, nested};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

/// Forgets the UDP flows of this thread's network namespace that were sent to one of some ports; how many there were.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_udp_flows(ports: &[u16]) -> Result<usize, NetworkError> {
    let talk = Talk::with_netfilter().map_err(|error| failed("open a netlink socket")(Refusal::from(error)))?;
    let mut forgotten = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        // `nfgenmsg`: family, version, resource.
        let header = Message::new(&[family, 0, 0, 0]);
        let flows = talk.ask(IPCTNL_MSG_CT_GET, DUMP, &header).map_err(failed("list the flows"))?;
        for flow in &flows {
            let origin = nested(flow.get(4..).unwrap_or_default(), CTA_TUPLE_ORIG);
            let protocol = nested(origin, CTA_TUPLE_PROTO);
            let port = nested(protocol, CTA_PROTO_DST_PORT).try_into().map(u16::from_be_bytes);
            if nested(protocol, CTA_PROTO_NUM) != [UDP] || !port.is_ok_and(|port| ports.contains(&port)) {
                continue;
            }
            let mut message = header.clone();
            message.put(CTA_TUPLE_ORIG | NESTED, origin);
            match talk.ask(IPCTNL_MSG_CT_DELETE, 0, &message) {
                // It may have ended by itself meanwhile.
                Err(refusal) if refusal.source.raw_os_error() == Some(libc::ENOENT) => {}
                other => {
                    other.map_err(failed("forget a flow"))?;
                    forgotten += 1;
                }
            }
        }
    }
    Ok(forgotten)
}
