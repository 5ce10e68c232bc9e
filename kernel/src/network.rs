//! Links, addresses and routes of a network namespace, by netlink.
//!
//! A [`Links`] speaks to the namespace of the thread that opened it, and waits: programs that do one thing and end
//! use it as it is, daemons on a thread that may block.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};
use tokio::runtime::Runtime;

/// Why something of the network can't be had.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct NetworkError {
    step: String,
    #[source]
    source: std::io::Error,
}

impl NetworkError {
    /// The kernel's answer.
    #[must_use]
    pub fn kind(&self) -> std::io::ErrorKind {
        self.source.kind()
    }

    /// The kernel's answer as a number (`EEXIST`, `ENODEV`, …).
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

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
}

/// A pair of links to be made, one end here.
#[derive(Clone, Debug)]
pub struct VethPair<'a> {
    /// Name of the end here.
    pub name: &'a str,
    /// Name of the other end.
    pub peer: &'a str,
    /// The namespace in which the other end is born.
    pub peer_namespace: BorrowedFd<'a>,
    /// Hardware address of the other end; none lets the kernel choose.
    pub peer_mac: Option<[u8; 6]>,
    /// Bytes of a packet; 0 is the default.
    pub mtu: u32,
}

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
}

/// A talk with the kernel about links.
pub struct Links {
    runtime: Runtime,
    handle: Handle,
}

fn failed(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let step = step.into();
    move |error| {
        let source = match &error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            _ => std::io::Error::other(error.to_string()),
        };
        NetworkError { step, source }
    }
}

impl Links {
    /// Opens a talk in this thread's network namespace.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn open() -> Result<Links, NetworkError> {
        let broken = |source| NetworkError { step: "open a netlink socket".into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(broken)?;
        let _inside = runtime.enter();
        let (connection, handle, _) = new_connection().map_err(broken)?;
        runtime.spawn(connection);
        drop(_inside);
        Ok(Links { runtime, handle })
    }

    /// A link by name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let found = self.runtime.block_on(self.handle.link().get().match_name(name).execute().try_next());
        match found.map_err(failed(format!("find the link {name}"))) {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            Err(error) if error.code() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list(&self) -> Result<Vec<Link>, NetworkError> {
        let all: Result<Vec<LinkMessage>, _> = self.runtime.block_on(self.handle.link().get().execute().try_collect());
        Ok(all.map_err(failed("list the links"))?.iter().map(read_link).collect())
    }

    fn add(&self, message: LinkMessage, step: String) -> Result<(), NetworkError> {
        self.runtime.block_on(self.handle.link().add(message).execute()).map_err(failed(step))
    }

    fn set(&self, message: LinkMessage, step: String) -> Result<(), NetworkError> {
        self.runtime.block_on(self.handle.link().set(message).execute()).map_err(failed(step))
    }

    /// Makes a bridge. It forwards at once: pods make no loops.
    ///
    /// # Errors
    /// When there is a link of that name, or the kernel refuses.
    pub fn add_bridge(&self, name: &str, mtu: u32, vlan_filtering: bool) -> Result<(), NetworkError> {
        let mut builder = LinkBridge::new(name);
        if mtu > 0 {
            builder = builder.mtu(mtu);
        }
        if vlan_filtering {
            builder = builder.vlan_filtering(true);
        }
        self.add(builder.build(), format!("make the bridge {name}"))
    }

    /// Makes a pair whose other end is born in its namespace: nothing has to be moved or renamed.
    ///
    /// # Errors
    /// When a name is taken, or the kernel refuses.
    pub fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), NetworkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.peer.to_string())
            .setns_by_fd(pair.peer_namespace.as_raw_fd());
        let mut builder = LinkVeth::new(pair.name, pair.peer);
        if pair.mtu > 0 {
            peer = peer.mtu(pair.mtu);
            builder = builder.mtu(pair.mtu);
        }
        if let Some(mac) = pair.peer_mac {
            peer = peer.address(mac.to_vec());
        }
        let message = builder.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).up().build();
        self.add(message, format!("make the pair {} and {}", pair.name, pair.peer))
    }

    /// Raises or lowers a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, index: u32, up: bool) -> Result<(), NetworkError> {
        let builder = LinkUnspec::new_with_index(index);
        let message = if up { builder.up() } else { builder.down() }.build();
        self.set(message, format!("set link {index} {}", if up { "up" } else { "down" }))
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_controller(&self, index: u32, controller: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).controller(controller).build();
        self.set(message, format!("put link {index} into bridge {controller}"))
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).build();
        self.set(message, format!("set the hardware address of link {index}"))
    }

    /// Sets whether a link takes packets for others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_promiscuous(&self, index: u32, on: bool) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).promiscuous(on).build();
        self.set(message, format!("set link {index} promiscuous"))
    }

    /// Sets whether a port sends packets back where they came from (`hairpin`) and whether it only talks to ports that
    /// are not isolated (`isolated`).
    ///
    /// # Errors
    /// When the link is no port of a bridge, or the kernel refuses.
    pub fn set_port(&self, index: u32, hairpin: bool, isolated: bool) -> Result<(), NetworkError> {
        let mut builder = LinkBridgePort::new(index).append_info_data(InfoBridgePort::HairpinMode(hairpin));
        if isolated {
            builder = builder.append_info_data(InfoBridgePort::Isolated(true));
        }
        self.runtime
            .block_on(self.handle.link().set_port(builder.build()).execute())
            .map_err(failed(format!("set the bridge port of link {index}")))
    }

    /// Removes a link, and the other end of a pair with it. Fine when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.find(name)? else { return Ok(()) };
        let deleted = self.runtime.block_on(self.handle.link().del(link.index).execute());
        match deleted.map_err(failed(format!("delete the link {name}"))) {
            Err(error) if error.code() == Some(nix::libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Addresses of a link with their prefix, without the link-local ones.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNetwork>, NetworkError> {
        let listed: Result<Vec<_>, _> =
            self.runtime.block_on(self.handle.address().get().set_link_index_filter(index).execute().try_collect());
        let mut found = Vec::new();
        for message in listed.map_err(failed(format!("list the addresses of link {index}")))? {
            let prefix = message.header.prefix_len;
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            let Some(ip) = local.or(plain) else { continue };
            let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if let Ok(network) = IpNetwork::new(ip, prefix)
                && !link_local
            {
                found.push(network);
            }
        }
        Ok(found)
    }

    /// Gives a link an address. Fine when it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self, index: u32, address: IpNetwork) -> Result<(), NetworkError> {
        let request = self.handle.address().add(index, address.ip(), address.prefix());
        self.runtime
            .block_on(request.replace().execute())
            .map_err(failed(format!("give link {index} the address {address}")))
    }

    /// Takes an address from a link. Fine when it doesn't have it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), NetworkError> {
        use rtnetlink::AddressMessageBuilder;
        let message = match address {
            IpNetwork::V4(v4) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(v4.ip(), v4.prefix()).build()
            }
            IpNetwork::V6(v6) => {
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(v6.ip(), v6.prefix()).build()
            }
        };
        let deleted = self.runtime.block_on(self.handle.address().del(message).execute());
        match deleted.map_err(failed(format!("take the address {address} from link {index}"))) {
            Err(error) if error.code() == Some(nix::libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Adds a route. Fine when it is there.
    ///
    /// # Errors
    /// When the gateway is of another family or can't be reached, or the kernel refuses.
    pub fn add_route(&self, route: &Route) -> Result<(), NetworkError> {
        let step = format!("add the route to {}", route.destination);
        let wrong = |error: &dyn std::fmt::Display| NetworkError {
            step: step.clone(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string()),
        };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.destination.network(), route.destination.prefix())
            .map_err(|error| wrong(&error))?
            .output_interface(route.link);
        builder = match route.gateway {
            Some(gateway) => builder.gateway(gateway).map_err(|error| wrong(&error))?,
            None => builder.scope(RouteScope::Link),
        };
        if route.priority > 0 {
            builder = builder.priority(route.priority);
        }
        if route.table > 0 {
            builder = builder.table_id(route.table);
        }
        let added = self.runtime.block_on(self.handle.route().add(builder.build()).execute());
        match added.map_err(failed(step)) {
            Err(error) if error.code() == Some(nix::libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Routes of the main table through a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&self, index: u32) -> Result<Vec<Route>, NetworkError> {
        let mut found = Vec::new();
        for any in [IpAddr::V4([0; 4].into()), IpAddr::V6([0; 16].into())] {
            let mut message = RouteMessage::default();
            message.header.address_family = match any {
                IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
                IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
            };
            let listed: Result<Vec<RouteMessage>, _> =
                self.runtime.block_on(self.handle.route().get(message).execute().try_collect());
            let listed = listed.map_err(failed("list the routes"))?;
            found.extend(
                listed.iter().filter_map(|message| read_route(message, any)).filter(|route| route.link == index),
            );
        }
        Ok(found)
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::OperState(state) => link.running = *state == State::Up,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn read_route(message: &RouteMessage, any: IpAddr) -> Option<Route> {
    /// `RT_TABLE_MAIN`.
    const MAIN: u8 = 254;
    if message.header.table != MAIN {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut destination, mut gateway, mut link, mut priority) = (any, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address(to)?,
            RouteAttribute::Gateway(through) => gateway = address(through),
            RouteAttribute::Oif(index) => link = *index,
            RouteAttribute::Priority(metric) => priority = *metric,
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway, link, priority, table: 0 })
}

/// Writes a sysctl of this thread's network namespace, by its file below `/proc/sys/net`: the kernel shows each thread
/// the values of its own namespace.
///
/// # Errors
/// When there is none or the kernel refuses the value.
pub fn write_sysctl(file: &str, value: &str) -> std::io::Result<()> {
    std::fs::write(std::path::Path::new("/proc/sys/net").join(file), value)
}
