//! Ranges of addresses: pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::kit::Address;

/// Addresses that are tried in one allocation; a range may hold more than anybody can walk through.
const CANDIDATES_MAX: usize = 1 << 17;

/// A range as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RangeConf {
    pub(crate) subnet: Option<IpNetwork>,
    pub(crate) range_start: Option<IpAddr>,
    pub(crate) range_end: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

/// A range, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNetwork,
    start: u128,
    end: u128,
    pub(crate) gateway: Option<IpAddr>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
}

impl Range {
    /// Checks a range and fills in what it leaves out: all of the subnet but its ends, the first address as gateway.
    pub(crate) fn new(conf: &RangeConf) -> Result<Range, String> {
        let subnet = conf.subnet.ok_or("no subnet")?;
        if subnet.ip() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix(),
                subnet.network()
            ));
        }
        let v6 = subnet.is_ipv6();
        if subnet.prefix() > if v6 { 126 } else { 30 } {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        let (first, last) = (number(subnet.network()), number(subnet.broadcast()));
        let inside = |name: &str, ip: Option<IpAddr>| match ip {
            Some(ip) if ip.is_ipv6() == v6 && subnet.contains(ip) => Ok(Some(number(ip))),
            Some(ip) => Err(format!("{name} {ip} not in network {subnet}")),
            None => Ok(None),
        };
        let start = inside("RangeStart", conf.range_start)?.unwrap_or(first + 1);
        let end = inside("RangeEnd", conf.range_end)?.unwrap_or(if v6 { last } else { last - 1 });
        if start > end {
            return Err(format!("RangeStart {} is behind RangeEnd {}", address(start, v6), address(end, v6)));
        }
        let gateway = conf.gateway.unwrap_or_else(|| address(first + 1, v6));
        if gateway.is_ipv6() != v6 {
            return Err(format!("gateway {gateway} is of another family than {subnet}"));
        }
        Ok(Range { subnet, start, end, gateway: Some(gateway) })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.subnet.is_ipv6() && (self.start..=self.end).contains(&number(ip))
    }

    /// An address with what belongs to it.
    pub(crate) fn address(&self, ip: IpAddr) -> Address {
        let network = IpNetwork::new(ip, self.subnet.prefix()).unwrap_or(self.subnet);
        Address { address: network, gateway: self.gateway, interface: None }
    }
}

/// Ranges of which a container gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.0.iter().enumerate() {
            let v6 = range.subnet.is_ipv6();
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{}-{}", address(range.start, v6), address(range.end, v6))?;
        }
        Ok(())
    }
}

impl RangeSet {
    /// Checks that the ranges are of one family and apart.
    pub(crate) fn new(ranges: Vec<Range>) -> Result<RangeSet, String> {
        let Some(first) = ranges.first() else { return Err("empty range set".into()) };
        if ranges.iter().any(|range| range.subnet.is_ipv6() != first.subnet.is_ipv6()) {
            return Err("mixed address families".into());
        }
        for (place, range) in ranges.iter().enumerate() {
            if ranges[..place].iter().any(|other| overlap(range, other)) {
                return Err(format!("subnet {} overlaps with another of the set", range.subnet));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// Whether an address could come from both.
    pub(crate) fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| overlap(range, theirs)))
    }

    /// The range that holds an address.
    pub(crate) fn find(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// All addresses in the order in which they are tried: those after the last one, then from the beginning.
    pub(crate) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
        let all = || {
            self.0.iter().flat_map(|range| {
                let v6 = range.subnet.is_ipv6();
                (range.start..=range.end).map(move |number| (range, address(number, v6)))
            })
        };
        let place =
            last.and_then(|last| self.0.iter().position(|range| range.contains(last)).map(|place| (place, last)));
        let after = place.into_iter().flat_map(move |(place, last)| {
            self.0[place..].iter().enumerate().flat_map(move |(step, range)| {
                let start = if step == 0 { number(last).saturating_add(1) } else { range.start };
                let v6 = range.subnet.is_ipv6();
                (start..=range.end).map(move |number| (range, address(number, v6)))
            })
        });
        after.chain(all()).filter(|(range, ip)| range.gateway != Some(*ip)).take(CANDIDATES_MAX)
    }
}

fn overlap(one: &Range, other: &Range) -> bool {
    one.subnet.is_ipv6() == other.subnet.is_ipv6() && one.start <= other.end && other.start <= one.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str, start: Option<&str>, end: Option<&str>) -> Result<Range, String> {
        let ip = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Range::new(&RangeConf {
            subnet: Some(text.parse().unwrap()),
            range_start: ip(start),
            range_end: ip(end),
            gateway: None,
        })
    }

    #[test]
    fn addresses_come_in_turn() {
        let set = RangeSet::new(vec![range("192.168.1.0/29", None, None).unwrap()]).unwrap();
        let after = |last: Option<&str>| -> Vec<String> {
            let ips = set.candidates(last.map(|last| last.parse().unwrap()));
            ips.take(6).map(|(_, ip)| ip.to_string().replace("192.168.1.", "")).collect()
        };
        assert_eq!(after(None), ["2", "3", "4", "5", "6"]);
        assert_eq!(after(Some("192.168.1.4")), ["5", "6", "2", "3", "4", "5"]);
        assert_eq!(after(Some("192.168.1.6")), ["2", "3", "4", "5", "6"]);
        assert_eq!(after(Some("10.0.0.1")), ["2", "3", "4", "5", "6"]);
        assert_eq!(set.to_string(), "192.168.1.1-192.168.1.6");
    }

    #[test]
    fn wrong_ranges_are_named() {
        for (subnet, start, end, text) in [
            ("10.0.0.0/31", None, None, "too small"),
            ("10.0.0.1/24", None, None, "host bits"),
            ("10.0.0.0/24", Some("10.0.1.1"), None, "RangeStart 10.0.1.1"),
            ("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.3"), "behind"),
            ("fd00::/127", None, None, "too small"),
        ] {
            let error = range(subnet, start, end).unwrap_err();
            assert!(error.contains(text), "{subnet}: {error}");
        }
        let (a, b) = (range("10.0.0.0/24", None, None).unwrap(), range("10.0.0.0/16", None, None).unwrap());
        assert!(RangeSet::new(vec![a.clone(), b]).is_err());
        assert!(RangeSet::new(vec![a, range("fd00::/64", None, None).unwrap()]).is_err());
        let v6 = range("fd00::/64", None, None).unwrap();
        assert_eq!(RangeSet::new(vec![v6]).unwrap().candidates(None).next().unwrap().1.to_string(), "fd00::2");
    }
}
