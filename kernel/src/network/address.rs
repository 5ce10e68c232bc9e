//! Addresses of links.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Links, NetworkError, fine_when};
use crate::netlink::{CREATE, DUMP, Message, REPLACE, attributes, number};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// The bytes of an address.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An address out of its bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv6() { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

/// `ifaddrmsg`.
fn header(family: u8, prefix: u8, index: u32) -> Message {
    let mut bytes = [family, prefix, 0, 0, 0, 0, 0, 0];
    bytes[4..].copy_from_slice(&index.to_ne_bytes());
    Message::new(&bytes)
}

/// An address with the kernel's flags.
struct Found {
    network: IpNetwork,
    flags: u32,
}

impl Links {
    fn found(&self, index: u32) -> Result<Vec<Found>, NetworkError> {
        let step = format!("list the addresses of link {index}");
        let answers = self.read(RTM_GETADDR, DUMP, &header(0, 0, 0), step)?;
        let right = |body: &&Vec<u8>| number(body.get(4..).unwrap_or_default()) == index;
        Ok(answers.iter().filter(right).filter_map(|body| read(body)).collect())
    }

    /// Addresses of a link with their prefix, without the link-local ones.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNetwork>, NetworkError> {
        let link_local = |network: &IpNetwork| matches!(network.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        let networks = self.found(index)?.into_iter().map(|found| found.network);
        Ok(networks.filter(|network| !link_local(network)).collect())
    }

    /// The addresses of a link that the kernel doesn't use yet, because it still asks whether somebody else has them,
    /// and those that somebody else has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unsettled_addresses(&self, index: u32) -> Result<(Vec<IpNetwork>, Vec<IpNetwork>), NetworkError> {
        let (mut tentative, mut taken) = (Vec::new(), Vec::new());
        for found in self.found(index)? {
            if found.flags & IFA_F_DADFAILED != 0 {
                taken.push(found.network);
            } else if found.flags & IFA_F_TENTATIVE != 0 {
                tentative.push(found.network);
            }
        }
        Ok((tentative, taken))
    }

    /// Gives a link an address. Fine when it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self, index: u32, address: IpNetwork) -> Result<(), NetworkError> {
        let mut message = header(family(address.ip()), address.prefix(), index);
        message.put(IFA_LOCAL, &octets(address.ip())).put(IFA_ADDRESS, &octets(address.ip()));
        if let IpNetwork::V4(v4) = address
            && v4.prefix() < 31
        {
            message.put(IFA_BROADCAST, &v4.broadcast().octets());
        }
        self.change(RTM_NEWADDR, CREATE | REPLACE, &message, format!("give link {index} the address {address}"))
    }

    /// Takes an address from a link. Fine when it doesn't have it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), NetworkError> {
        let mut message = header(family(address.ip()), address.prefix(), index);
        message.put(IFA_LOCAL, &octets(address.ip())).put(IFA_ADDRESS, &octets(address.ip()));
        let step = format!("take the address {address} from link {index}");
        fine_when(libc::EADDRNOTAVAIL, self.change(RTM_DELADDR, 0, &message, step))
    }
}

fn read(body: &[u8]) -> Option<Found> {
    let (prefix, mut flags) = (*body.get(1)?, u32::from(*body.get(2)?));
    let (mut local, mut plain) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => plain = address(value),
            IFA_FLAGS => flags = number(value),
            _ => {}
        }
    }
    Some(Found { network: IpNetwork::new(local.or(plain)?, prefix).ok()?, flags })
}
