//! Which addresses the node is known by.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Why the node has no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The interfaces can't be listed.
    #[error("addresses of the machine: {0}")]
    List(#[source] nix::Error),
    /// The address asked for is not the machine's.
    #[error("node-ip {0} is on no interface of this machine; name one that is, or leave it out")]
    NotLocal(IpAddr),
    /// Addresses that name a family only, or not at all, can't be used together.
    #[error("node-ip: give one address, or one IPv4 and one IPv6 address")]
    Families,
    /// No interface has an address of the family that was asked for.
    #[error("no interface of this machine has an address that the node could have{0}; set node-ip")]
    None(&'static str),
}

/// An address of an interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LocalAddress {
    interface: String,
    address: IpAddr,
}

/// The node's addresses, the main one first: those asked for (`--node-ip`), which must be on an interface; else the
/// address of the interface with the default route; else the first that can be routed; else loopback. `0.0.0.0` and
/// `::` ask for a family.
///
/// # Errors
/// [`AddressError`] saying which address is wrong.
pub fn detect_addresses(wanted: &[IpAddr]) -> Result<Vec<IpAddr>, AddressError> {
    let local = local_addresses().map_err(AddressError::List)?;
    let routes_v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes_v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let default = [default_interface_v4(&routes_v4), default_interface_v6(&routes_v6)];
    choose(wanted, &local, default.each_ref().map(Option::as_deref))
}

fn local_addresses() -> nix::Result<Vec<LocalAddress>> {
    let mut found = Vec::new();
    for entry in getifaddrs()?.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(storage) = entry.address else { continue };
        let address = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        found.push(LocalAddress { interface: entry.interface_name, address });
    }
    Ok(found)
}

fn choose(wanted: &[IpAddr], local: &[LocalAddress], default: [Option<&str>; 2]) -> Result<Vec<IpAddr>, AddressError> {
    match wanted {
        [] => detect(local, default, None),
        [only] if only.is_unspecified() => detect(local, default, Some(only.is_ipv4())),
        [only] => check(only, local).map(|()| vec![*only]),
        [one, two] if one.is_ipv4() != two.is_ipv4() && !one.is_unspecified() && !two.is_unspecified() => {
            check(one, local)?;
            check(two, local)?;
            Ok(wanted.to_vec())
        }
        _ => Err(AddressError::Families),
    }
}

fn check(address: &IpAddr, local: &[LocalAddress]) -> Result<(), AddressError> {
    // A machine may hold all of 127.0.0.0/8 without listing it.
    if address.is_loopback() || local.iter().any(|entry| entry.address == *address) {
        return Ok(());
    }
    Err(AddressError::NotLocal(*address))
}

fn detect(local: &[LocalAddress], default: [Option<&str>; 2], v4: Option<bool>) -> Result<Vec<IpAddr>, AddressError> {
    let family = |address: &IpAddr| v4.is_none_or(|v4| address.is_ipv4() == v4);
    let usable = || local.iter().filter(|entry| family(&entry.address) && is_routable(&entry.address));
    let on_default = |v4: bool| {
        let interface = default[usize::from(!v4)]?;
        usable().find(|entry| entry.interface == interface && entry.address.is_ipv4() == v4).map(|entry| entry.address)
    };
    let any = |v4: bool| usable().find(|entry| entry.address.is_ipv4() == v4).map(|entry| entry.address);
    let loopback = || local.iter().map(|entry| entry.address).find(|address| address.is_loopback() && family(address));
    on_default(true)
        .or_else(|| on_default(false))
        .or_else(|| any(true))
        .or_else(|| any(false))
        .or_else(loopback)
        .map(|address| vec![address])
        .ok_or(AddressError::None(match v4 {
            Some(true) => " (IPv4)",
            Some(false) => " (IPv6)",
            None => "",
        }))
}

/// Addresses that other machines can send to.
fn is_routable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified() && !v4.is_multicast(),
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified() && !v6.is_multicast()
        }
    }
}

/// The interface of the IPv4 default route with the lowest metric, from `/proc/net/route`.
fn default_interface_v4(table: &str) -> Option<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [interface, destination, _, flags, _, _, metric, mask, ..] = fields.as_slice() else { return None };
            let up = u32::from_str_radix(flags, 16).ok()? & 1 == 1;
            (up && *destination == "00000000" && *mask == "00000000")
                .then(|| (metric.parse::<u32>().unwrap_or(u32::MAX), (*interface).to_owned()))
        })
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, interface)| interface)
}

/// The interface of the IPv6 default route with the lowest metric, from `/proc/net/ipv6_route`.
fn default_interface_v6(table: &str) -> Option<String> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [destination, length, .., metric, _, _, flags, interface] = fields.as_slice() else { return None };
            let (metric, flags) = (u32::from_str_radix(metric, 16).ok()?, u32::from_str_radix(flags, 16).ok()?);
            // RTF_UP without RTF_REJECT, which is how the kernel writes "no route".
            let usable = flags & 1 == 1 && flags & 0x200 == 0 && *interface != "lo";
            (usable && *length == "00" && destination.bytes().all(|byte| byte == b'0'))
                .then(|| (metric, (*interface).to_owned()))
        })
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(list: &[(&str, &str)]) -> Vec<LocalAddress> {
        list.iter()
            .map(|(interface, address)| LocalAddress {
                interface: (*interface).to_owned(),
                address: address.parse().unwrap(),
            })
            .collect()
    }

    #[test]
    fn the_default_route_decides_and_wishes_go_first() {
        let machine = local(&[
            ("lo", "127.0.0.1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "10.0.0.5"),
            ("eth0", "2001:db8::5"),
        ]);
        let lonely = local(&[("lo", "127.0.0.1"), ("lo", "::1")]);
        type Case<'a> = (&'a str, &'a [&'a str], &'a [LocalAddress], [Option<&'a str>; 2], Option<&'a [&'a str]>);
        let cases: [Case<'_>; 11] = [
            ("default route", &[], &machine, [Some("eth0"), None], Some(&["10.0.0.5"])),
            ("only an IPv6 route", &[], &machine, [None, Some("eth0")], Some(&["2001:db8::5"])),
            ("no route", &[], &machine, [None, None], Some(&["172.17.0.1"])),
            ("nothing but loopback", &[], &lonely, [None, None], Some(&["127.0.0.1"])),
            ("family asked for", &["::"], &machine, [Some("eth0"), None], Some(&["2001:db8::5"])),
            ("named", &["172.17.0.1"], &machine, [Some("eth0"), None], Some(&["172.17.0.1"])),
            ("loopback named", &["127.0.0.9"], &machine, [None, None], Some(&["127.0.0.9"])),
            ("both families", &["2001:db8::5", "10.0.0.5"], &machine, [None, None], Some(&["2001:db8::5", "10.0.0.5"])),
            ("not ours", &["10.0.0.6"], &machine, [None, None], None),
            ("one family twice", &["10.0.0.5", "172.17.0.1"], &machine, [None, None], None),
            ("nothing at all", &[], &[], [None, None], None),
        ];
        for (what, wanted, local, default, want) in cases {
            let wanted: Vec<IpAddr> = wanted.iter().map(|text| text.parse().unwrap()).collect();
            let want: Option<Vec<IpAddr>> = want.map(|list| list.iter().map(|text| text.parse().unwrap()).collect());
            assert_eq!(choose(&wanted, local, default).ok(), want, "{what}");
        }
    }

    #[test]
    fn route_tables_are_read() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth2\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_interface_v4(v4).as_deref(), Some("eth0"));
        assert_eq!(default_interface_v4("header\n"), None);
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_interface_v6(&v6).as_deref(), Some("eth0"));
    }

    #[test]
    fn this_machine_has_an_address() {
        assert!(!detect_addresses(&[]).unwrap().is_empty());
    }
}
