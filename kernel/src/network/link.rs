//! Links: bridges, pairs, and what is set on them.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Links, NetworkError, fine_when};
use crate::netlink::{CREATE, DUMP, EXCLUSIVE, Message, NESTED, attributes, nested, number, text};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWLINKPROP: u16 = 108;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const VETH_INFO_PEER: u16 = 1;

const IFF_UP: u32 = 0x1;
const IFF_PROMISC: u32 = 0x100;
/// `IF_OPER_UP`.
const OPERATES: u8 = 6;

/// A link as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in this namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Set to be up.
    pub up: bool,
    /// The kernel says that packets flow.
    pub running: bool,
    /// Takes packets for others.
    pub promiscuous: bool,
    /// Index of its bridge.
    pub controller: Option<u32>,
    /// Index of the other end of a pair (in its own namespace).
    pub peer: Option<u32>,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    /// As a port of a bridge: packets may go back where they came from.
    pub hairpin: bool,
    /// As a port of a bridge: speaks only with ports that are not isolated.
    pub isolated: bool,
}

/// A pair of links to be made, one end here.
#[derive(Clone, Debug)]
pub struct VethPair<'a> {
    /// Name of the end here, which is made up.
    pub name: &'a str,
    /// Index of the bridge that the end here is a port of from the start.
    pub controller: Option<u32>,
    /// Name of the other end.
    pub peer: &'a str,
    /// The namespace in which the other end is born.
    pub peer_namespace: BorrowedFd<'a>,
    /// Hardware address of the other end; none lets the kernel choose.
    pub peer_mac: Option<[u8; 6]>,
    /// Bytes of a packet; 0 is the default.
    pub mtu: u32,
}

/// `ifinfomsg` of the link with an index (0: by another attribute) with flags to be set.
fn header(index: u32, flags: u32, change: u32) -> Message {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&change.to_ne_bytes());
    Message::new(&bytes)
}

impl Links {
    /// A link by name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut message = header(0, 0, 0);
        message.put_text(IFLA_IFNAME, name);
        self.find_by(&message, format!("find the link {name}"))
    }

    /// A link by index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn find_index(&self, index: u32) -> Result<Option<Link>, NetworkError> {
        self.find_by(&header(index, 0, 0), format!("find link {index}"))
    }

    fn find_by(&self, message: &Message, step: String) -> Result<Option<Link>, NetworkError> {
        match self.read(RTM_GETLINK, 0, message, step) {
            Ok(answers) => Ok(answers.first().map(|body| read_link(body))),
            Err(error) if error.code() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list(&self) -> Result<Vec<Link>, NetworkError> {
        let answers = self.read(RTM_GETLINK, DUMP, &header(0, 0, 0), "list the links".into())?;
        Ok(answers.iter().map(|body| read_link(body)).collect())
    }

    /// Makes a bridge with a hardware address of its own: without one it takes the lowest of its ports, and neighbours
    /// lose it when another port comes. It forwards at once: pods make no loops.
    ///
    /// # Errors
    /// When there is a link of that name, or the kernel refuses.
    pub fn add_bridge(&self, name: &str, mtu: u32, vlan_filtering: bool) -> Result<(), NetworkError> {
        let mut message = header(0, 0, 0);
        message.put_text(IFLA_IFNAME, name).put(IFLA_ADDRESS, &random_mac());
        if mtu > 0 {
            message.put_number(IFLA_MTU, mtu);
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"bridge");
            if vlan_filtering {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.put(IFLA_BR_VLAN_FILTERING, &[1]);
                });
            }
        });
        self.change(RTM_NEWLINK, CREATE | EXCLUSIVE, &message, format!("make the bridge {name}"))
    }

    /// Makes a pair whose other end is born in its namespace: nothing has to be moved or renamed, which would take the
    /// kernel tens of milliseconds.
    ///
    /// # Errors
    /// When a name is taken, or the kernel refuses.
    pub fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), NetworkError> {
        let mut message = header(0, IFF_UP, IFF_UP);
        message.put_text(IFLA_IFNAME, pair.name);
        if pair.mtu > 0 {
            message.put_number(IFLA_MTU, pair.mtu);
        }
        if let Some(controller) = pair.controller {
            message.put_number(IFLA_MASTER, controller);
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    // The peer's own `ifinfomsg`; it can't be up before there are two ends.
                    peer.raw(&[0; 16]).put_text(IFLA_IFNAME, pair.peer);
                    peer.put_number(IFLA_NET_NS_FD, pair.peer_namespace.as_raw_fd() as u32);
                    if pair.mtu > 0 {
                        peer.put_number(IFLA_MTU, pair.mtu);
                    }
                    if let Some(mac) = pair.peer_mac {
                        peer.put(IFLA_ADDRESS, &mac);
                    }
                });
            });
        });
        let step = format!("make the pair {} and {}", pair.name, pair.peer);
        self.change(RTM_NEWLINK, CREATE | EXCLUSIVE, &message, step)
    }

    /// Raises or lowers a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, index: u32, up: bool) -> Result<(), NetworkError> {
        let message = header(index, if up { IFF_UP } else { 0 }, IFF_UP);
        self.change(RTM_NEWLINK, 0, &message, format!("set link {index} {}", if up { "up" } else { "down" }))
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_controller(&self, index: u32, controller: u32) -> Result<(), NetworkError> {
        let mut message = header(index, 0, 0);
        message.put_number(IFLA_MASTER, controller);
        self.change(RTM_NEWLINK, 0, &message, format!("put link {index} into bridge {controller}"))
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetworkError> {
        let mut message = header(index, 0, 0);
        message.put(IFLA_ADDRESS, &mac);
        self.change(RTM_NEWLINK, 0, &message, format!("set the hardware address of link {index}"))
    }

    /// Sets the largest size of a packet, in bytes.
    ///
    /// # Errors
    /// When the link can't have it, or the kernel refuses.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetworkError> {
        let mut message = header(index, 0, 0);
        message.put_number(IFLA_MTU, mtu);
        self.change(RTM_NEWLINK, 0, &message, format!("set the MTU of link {index} to {mtu}"))
    }

    /// Sets whether a link takes packets for others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_promiscuous(&self, index: u32, on: bool) -> Result<(), NetworkError> {
        let message = header(index, if on { IFF_PROMISC } else { 0 }, IFF_PROMISC);
        self.change(RTM_NEWLINK, 0, &message, format!("set link {index} promiscuous"))
    }

    /// Sets whether a port sends packets back where they came from (`hairpin`) and whether it only talks to ports that
    /// are not isolated (`isolated`).
    ///
    /// # Errors
    /// When the link is no port of a bridge, or the kernel refuses.
    pub fn set_port(&self, index: u32, hairpin: bool, isolated: bool) -> Result<(), NetworkError> {
        let mut message = header(index, 0, 0);
        message.nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_SLAVE_KIND, b"bridge").nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.put(IFLA_BRPORT_MODE, &[hairpin.into()]).put(IFLA_BRPORT_ISOLATED, &[isolated.into()]);
            });
        });
        self.change(RTM_NEWLINK, 0, &message, format!("set the bridge port of link {index}"))
    }

    /// Gives a link another name beside its own, of up to 127 bytes. Fine when it has it.
    ///
    /// # Errors
    /// When another link has it, or the kernel refuses.
    pub fn add_alternative_name(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let mut message = header(index, 0, 0);
        message.nest(IFLA_PROP_LIST | NESTED, |list| {
            list.put_text(IFLA_ALT_IFNAME, name);
        });
        let step = format!("give link {index} the name {name}");
        let named = self.change(RTM_NEWLINKPROP, CREATE | EXCLUSIVE, &message, step);
        match named {
            Err(error) if error.code() == Some(libc::EEXIST) => match self.find_alternative(name)? {
                Some(link) if link.index == index => Ok(()),
                _ => Err(error),
            },
            other => other,
        }
    }

    /// A link by another name of its.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn find_alternative(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut message = header(0, 0, 0);
        message.put_text(IFLA_ALT_IFNAME, name);
        self.find_by(&message, format!("find the link {name}"))
    }

    /// Removes a link, and the other end of a pair with it. Fine when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let mut message = header(0, 0, 0);
        message.put_text(IFLA_IFNAME, name);
        fine_when(libc::ENODEV, self.change(RTM_DELLINK, 0, &message, format!("delete the link {name}")))
    }
}

/// A hardware address that no maker gives out: of one station, administered here.
fn random_mac() -> [u8; 6] {
    use std::hash::{BuildHasher, Hasher};
    // The seed of the hasher comes from the kernel's random numbers.
    let [mut first, b, c, d, e, f, ..] = std::hash::RandomState::new().build_hasher().finish().to_ne_bytes();
    first = first & 0xfc | 0x02;
    [first, b, c, d, e, f]
}

/// A link out of the kernel's answer.
fn read_link(body: &[u8]) -> Link {
    let flags = number(body.get(8..).unwrap_or_default());
    let mut link = Link {
        index: number(body.get(4..).unwrap_or_default()),
        up: flags & IFF_UP != 0,
        promiscuous: flags & IFF_PROMISC != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = number(value),
            IFLA_MASTER => link.controller = Some(number(value)),
            IFLA_LINK => link.peer = Some(number(value)),
            IFLA_OPERSTATE => link.running = value == [OPERATES],
            IFLA_LINKINFO => {
                link.kind = text(nested(value, IFLA_INFO_KIND));
                if text(nested(value, IFLA_INFO_SLAVE_KIND)) == "bridge" {
                    let port = nested(value, IFLA_INFO_SLAVE_DATA);
                    link.hairpin = nested(port, IFLA_BRPORT_MODE) == [1];
                    link.isolated = nested(port, IFLA_BRPORT_ISOLATED) == [1];
                }
            }
            _ => {}
        }
    }
    link
}
