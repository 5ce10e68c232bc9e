//! Links, addresses, routes and flows on the real kernel, in namespaces of the test's own.

use std::os::fd::AsFd;
use std::path::PathBuf;

use orlop_kernel::namespace;
use orlop_kernel::network::{Links, Route, VethPair, forget_udp_flows, read_sysctl, write_sysctl};
use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, PRIORITY_SNAT, Step};

/// Rules whose making and listing takes more than one buffer.
const RULES: usize = 5000;

/// A namespace that ends with the test.
struct Namespace(PathBuf);

impl Namespace {
    fn new(name: &str) -> Namespace {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let path = std::env::temp_dir().join(format!("orlop-network-{name}-{}", std::process::id()));
        namespace::create_network(&path).unwrap();
        namespace::raise_loopback(&path).unwrap();
        Namespace(path)
    }

    fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::in_network(&self.0, work).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = namespace::remove_network(&self.0);
    }
}

#[test]
fn links_are_what_they_were_set_to() {
    let (here, there) = (Namespace::new("here"), Namespace::new("there"));
    let file = namespace::open(&there.0).unwrap();
    here.on(|| {
        let links = Links::open().unwrap();
        links.add_bridge("br0", 1400, false).unwrap();
        assert_eq!(links.add_bridge("br0", 0, false).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        let bridge = links.find("br0").unwrap().unwrap();
        assert_eq!((bridge.kind.as_str(), bridge.mtu, bridge.up), ("bridge", 1400, false));
        assert_eq!(bridge.mac.unwrap()[0] & 3, 2, "administered here, of one station");
        let pair = VethPair {
            name: "v0",
            controller: Some(bridge.index),
            peer: "eth0",
            peer_namespace: file.as_fd(),
            peer_mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1300,
        };
        links.add_veth(&pair).unwrap();
        let port = links.find("v0").unwrap().unwrap();
        assert_eq!((port.controller, port.mtu, port.up), (Some(bridge.index), 1300, true));
        assert!(!port.hairpin && !port.isolated);
        links.set_port(port.index, true, true).unwrap();
        links.set_mtu(port.index, 1200).unwrap();
        links.set_mac(port.index, [2, 0, 0, 0, 0, 8]).unwrap();
        links.set_promiscuous(bridge.index, true).unwrap();
        let port = links.find_index(port.index).unwrap().unwrap();
        assert_eq!((port.hairpin, port.isolated, port.mtu, port.mac), (true, true, 1200, Some([2, 0, 0, 0, 0, 8])));
        assert!(links.find("br0").unwrap().unwrap().promiscuous);
        assert!(links.set_mtu(port.index, 70_000).unwrap_err().to_string().contains("70000"));

        let long = "a-name-that-is-longer-than-names-of-links-are";
        links.add_alternative_name(port.index, long).unwrap();
        links.add_alternative_name(port.index, long).unwrap();
        assert!(links.add_alternative_name(bridge.index, long).is_err());
        assert_eq!(links.find_alternative(long).unwrap().unwrap().name, "v0");
        assert_eq!(links.find_alternative("nobody").unwrap(), None);
    });
    there.on(|| {
        let links = Links::open().unwrap();
        let peer = links.find("eth0").unwrap().unwrap();
        assert_eq!((peer.mac, peer.mtu, peer.up), (Some([2, 0, 0, 0, 0, 7]), 1300, false));
        links.set_up(peer.index, true).unwrap();
        assert!(links.find("eth0").unwrap().unwrap().up);
        links.delete("eth0").unwrap();
        links.delete("eth0").unwrap();
    });
    assert_eq!(here.on(|| Links::open().unwrap().find("v0").unwrap()), None, "the pair goes as one");
}

#[test]
fn addresses_and_routes_are_listed_as_given() {
    let here = Namespace::new("routes");
    here.on(|| {
        let links = Links::open().unwrap();
        links.add_bridge("br0", 0, false).unwrap();
        let index = links.find("br0").unwrap().unwrap().index;
        links.set_up(index, true).unwrap();
        write_sysctl("ipv6/conf/br0/accept_dad", "0").unwrap();
        assert_eq!(read_sysctl("ipv6/conf/br0/accept_dad").unwrap(), "0");
        for address in ["10.1.0.1/24", "fd01::1/64"] {
            let address = address.parse().unwrap();
            links.add_address(index, address).unwrap();
            links.add_address(index, address).unwrap();
            assert!(links.addresses(index).unwrap().contains(&address));
        }
        assert!(links.unsettled_addresses(index).unwrap().1.is_empty());
        let route = |destination: &str, gateway: Option<&str>| Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: index,
            priority: 0,
            table: 0,
            scope: None,
            mtu: 0,
            advertised_mss: 0,
        };
        let rich = Route {
            priority: 7,
            table: 1000,
            mtu: 1300,
            advertised_mss: 1200,
            ..route("10.3.0.0/16", Some("10.1.0.9"))
        };
        let all = [
            route("0.0.0.0/0", Some("10.1.0.9")),
            route("10.2.0.0/16", None),
            rich,
            route("fd02::/64", Some("fd01::9")),
        ];
        for route in &all {
            links.add_route(route).unwrap();
            links.add_route(route).unwrap();
            let found = links.routes(index).unwrap();
            let same = |one: &&Route| {
                (one.destination, one.gateway, one.table) == (route.destination, route.gateway, route.table)
                    && (one.mtu, one.advertised_mss) == (route.mtu, route.advertised_mss)
            };
            assert!(found.iter().any(|one| same(&one)), "{route:?} in {found:?}");
        }
        let wrong = links.add_route(&route("10.4.0.0/16", Some("fd01::9"))).unwrap_err();
        assert!(wrong.to_string().contains("another family"), "{wrong}");
        let far = links.add_route(&route("10.4.0.0/16", Some("172.30.0.1"))).unwrap_err();
        // The default route leads there, but not on the link.
        assert_eq!(far.code(), Some(101));
        assert!(far.to_string().contains("invalid gateway"), "the kernel's words are passed on: {far}");
        assert_eq!(links.link_towards("10.2.3.4".parse().unwrap()).unwrap(), Some(index));
        assert_eq!(links.link_towards("fd05::1".parse().unwrap()).unwrap(), None);
        for address in links.addresses(index).unwrap() {
            links.delete_address(index, address).unwrap();
            links.delete_address(index, address).unwrap();
        }
        assert!(links.addresses(index).unwrap().is_empty());
    });
}

#[test]
fn lists_longer_than_one_answer_are_whole() {
    let here = Namespace::new("many");
    here.on(|| {
        let links = Links::open().unwrap();
        for number in 0..150 {
            links.add_bridge(&format!("br{number}"), 0, false).unwrap();
        }
        let names: Vec<String> = links.list().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("br")).count(), 150);
        let mut nftables = Nftables::open();
        let steps = [Step::SourceIn([10, 0, 0, 1].into(), 32, true), Step::Masquerade];
        let made = nftables.change::<NftablesError>(|_| {
            let mut batch = Batch::default();
            batch.table(Family::Ipv4, "many", "").nat_chain(
                Family::Ipv4,
                "many",
                "post",
                Hook::Postrouting,
                PRIORITY_SNAT,
            );
            for number in 0..RULES {
                batch.tagged_rule(Family::Ipv4, "many", "post", &steps, &format!("rule {number}"), "tag");
            }
            Ok(batch)
        });
        made.unwrap();
        let rules = nftables.rules(Family::Ipv4, "many", "post").unwrap();
        assert_eq!(rules.len(), RULES);
        assert_eq!(
            (rules[RULES - 1].comment.as_str(), rules[RULES - 1].tag.as_str()),
            (format!("rule {}", RULES - 1).as_str(), "tag")
        );
        assert!(nftables.rules(Family::Ipv4, "many", "nothing").unwrap().is_empty());
        assert!(nftables.rules(Family::Ipv6, "nothing", "nothing").unwrap().is_empty());
        // All of a batch or nothing of it.
        let failed = nftables.change::<NftablesError>(|_| {
            let mut batch = Batch::default();
            batch.flush_chain(Family::Ipv4, "many", "post").delete_chain(Family::Ipv4, "many", "nothing");
            Ok(batch)
        });
        assert!(failed.unwrap_err().is_missing());
        assert_eq!(nftables.rules(Family::Ipv4, "many", "post").unwrap().len(), RULES);
    });
}

#[test]
fn only_flows_to_the_ports_are_forgotten() {
    let here = Namespace::new("flows");
    here.on(|| {
        // The kernel remembers flows once a rule needs them.
        let nobody = [Step::SourceIn([10, 255, 255, 255].into(), 32, true), Step::Masquerade];
        let made = Nftables::open().change::<NftablesError>(|_| {
            let mut batch = Batch::default();
            batch
                .table(Family::Ipv4, "t", "")
                .nat_chain(Family::Ipv4, "t", "c", Hook::Postrouting, PRIORITY_SNAT)
                .rule(Family::Ipv4, "t", "c", &nobody, "");
            Ok(batch)
        });
        made.unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [5001, 5002, 5003] {
            socket.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
        assert_eq!(forget_udp_flows(&[5001, 5003, 7777]).unwrap(), 2);
        assert_eq!(forget_udp_flows(&[5001, 5003]).unwrap(), 0);
        assert_eq!(forget_udp_flows(&[5002]).unwrap(), 1);
    });
}
