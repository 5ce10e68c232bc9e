//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::address::{address, family, octets};
use super::{Links, NetworkError, fine_when};
use crate::netlink::{CREATE, DUMP, EXCLUSIVE, Message, attributes, number};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// `RT_SCOPE_LINK`: on the link itself.
const SCOPE_LINK: u8 = 253;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNetwork,
    /// Through whom; none is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub link: u32,
    /// Metric; 0 is the default.
    pub priority: u32,
    /// Table; 0 is the main one.
    pub table: u32,
    /// `RT_SCOPE_*`; none is "link" without a gateway and "universe" with one.
    pub scope: Option<u8>,
    /// Bytes of a packet; 0 is the link's.
    pub mtu: u32,
    /// Largest segment that TCP announces, in bytes; 0 follows from the MTU.
    pub advertised_mss: u32,
}

/// `rtmsg`.
fn header(family: u8, prefix: u8, table: u8, scope: u8) -> [u8; 12] {
    [family, prefix, 0, 0, table, RTPROT_BOOT, scope, RTN_UNICAST, 0, 0, 0, 0]
}

impl Links {
    /// Adds a route. Fine when it is there.
    ///
    /// # Errors
    /// When the gateway is of another family or can't be reached, or the kernel refuses.
    pub fn add_route(&self, route: &Route) -> Result<(), NetworkError> {
        let step = format!("add the route to {}", route.destination);
        if route.gateway.is_some_and(|gateway| gateway.is_ipv6() != route.destination.is_ipv6()) {
            let source = std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            return Err(NetworkError { step: format!("{step}: its gateway is of another family"), source });
        }
        let scope = route.scope.unwrap_or(if route.gateway.is_some() { 0 } else { SCOPE_LINK });
        let table = if route.table == 0 { u32::from(RT_TABLE_MAIN) } else { route.table };
        let destination = route.destination;
        // Tables above 255 have no place in the header.
        let short = u8::try_from(table).unwrap_or(0);
        let mut message = Message::new(&header(family(destination.ip()), destination.prefix(), short, scope));
        if destination.prefix() > 0 {
            message.put(RTA_DST, &octets(destination.network()));
        }
        message.put_number(RTA_OIF, route.link).put_number(RTA_TABLE, table);
        if let Some(gateway) = route.gateway {
            message.put(RTA_GATEWAY, &octets(gateway));
        }
        if route.priority > 0 {
            message.put_number(RTA_PRIORITY, route.priority);
        }
        if route.mtu > 0 || route.advertised_mss > 0 {
            message.nest(RTA_METRICS, |metrics| {
                for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advertised_mss)] {
                    if value > 0 {
                        metrics.put_number(kind, value);
                    }
                }
            });
        }
        fine_when(libc::EEXIST, self.change(RTM_NEWROUTE, CREATE | EXCLUSIVE, &message, step))
    }

    /// Unicast routes through a link, of all tables that are not the kernel's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&self, index: u32) -> Result<Vec<Route>, NetworkError> {
        let mut found = Vec::new();
        for any in [IpAddr::V4([0; 4].into()), IpAddr::V6([0; 16].into())] {
            let message = Message::new(&header(family(any), 0, 0, 0));
            let answers = self.read(RTM_GETROUTE, DUMP, &message, "list the routes".into())?;
            found.extend(answers.iter().filter_map(|body| read(body, any)).filter(|route| route.link == index));
        }
        Ok(found)
    }

    /// Index of the link by which packets for an address leave; none when there is no way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link_towards(&self, ip: IpAddr) -> Result<Option<u32>, NetworkError> {
        let mut message = Message::new(&header(family(ip), if ip.is_ipv6() { 128 } else { 32 }, 0, 0));
        message.put(RTA_DST, &octets(ip));
        match self.read(RTM_GETROUTE, 0, &message, format!("find the way to {ip}")) {
            Ok(answers) => {
                let body = answers.first().and_then(|body| body.get(12..)).unwrap_or_default();
                Ok(attributes(body).find(|(kind, _)| *kind == RTA_OIF).map(|(_, value)| number(value)))
            }
            Err(error) if matches!(error.code(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read(body: &[u8], any: IpAddr) -> Option<Route> {
    /// `RT_TABLE_LOCAL`.
    const LOCAL: u32 = 255;
    let (prefix, mut table, scope, kind) = (*body.get(1)?, u32::from(*body.get(4)?), *body.get(6)?, *body.get(7)?);
    let mut route = Route {
        destination: IpNetwork::new(any, 0).ok()?,
        gateway: None,
        link: 0,
        priority: 0,
        table: 0,
        scope: Some(scope),
        mtu: 0,
        advertised_mss: 0,
    };
    let mut destination = any;
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_DST => destination = address(value)?,
            RTA_GATEWAY => route.gateway = address(value),
            RTA_OIF => route.link = number(value),
            RTA_PRIORITY => route.priority = number(value),
            RTA_TABLE => table = number(value),
            RTA_METRICS => {
                for (kind, value) in attributes(value) {
                    match kind {
                        RTAX_MTU => route.mtu = number(value),
                        RTAX_ADVMSS => route.advertised_mss = number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if kind != RTN_UNICAST || table == LOCAL {
        return None;
    }
    route.destination = IpNetwork::new(destination, prefix).ok()?;
    route.table = if table == u32::from(RT_TABLE_MAIN) { 0 } else { table };
    Some(route)
}
