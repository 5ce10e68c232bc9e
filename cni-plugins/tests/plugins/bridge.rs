//! `bridge`: what it makes is what upstream's makes, and works.

use serde_json::{Value, json};

use crate::machine::{Call, Machine, Maker, Namespace, Ours, Upstream, address_of, call_tcp, is_cut_off, network};

fn add(maker: Maker, config: &Value, id: &str) -> Call {
    Call::new(maker, "bridge", "ADD", config, id)
}

/// What can be seen of an attachment, without what is made up each time (names, hardware addresses, numbers).
fn state(machine: &Machine, pod: &Namespace, bridge: &str) -> Value {
    let addresses = |links: &Value| -> Vec<String> {
        let infos = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let infos = infos.iter().filter(|info| info["scope"] == "global");
        let text = |info: &Value| format!("{}/{} {}", info["local"], info["prefixlen"], info["broadcast"]);
        let mut texts: Vec<String> = infos.map(text).collect();
        texts.sort();
        texts
    };
    let routes = |line: &str| -> Vec<String> {
        let routes = pod.ip(line);
        let text = |route: &Value| {
            let metrics = &route["metrics"];
            let (scope, metric, table) = (&route["scope"], &route["metric"], &route["table"]);
            format!("{} {} {scope} {metric} {table} {metrics}", route["dst"], route["gateway"])
        };
        let routes = routes.as_array().cloned().unwrap_or_default();
        let routes = routes.iter().filter(|route| route["protocol"] != "kernel");
        routes.map(text).collect()
    };
    let eth0 = pod.ip("addr show dev eth0");
    let ports = machine.ip(&format!("link show master {bridge}"));
    let ports = ports.as_array().cloned().unwrap_or_default();
    let port = |port: &Value| {
        let data = &port["linkinfo"]["info_slave_data"];
        json!({"mtu": port["mtu"], "hairpin": data["hairpin"], "isolated": data["isolated"], "state": port["operstate"]})
    };
    let of_bridge = machine.ip(&format!("addr show dev {bridge}"));
    let sysctl = |file: &str| std::fs::read_to_string(format!("/proc/sys/net/{file}")).unwrap_or_default();
    json!({
        "container": addresses(&eth0),
        "mtu": eth0[0]["mtu"],
        "up": eth0[0]["operstate"],
        "routes": routes("route show table all"),
        "routes6": routes("-6 route show table all"),
        "arp_notify": pod.on(|| sysctl("ipv4/conf/eth0/arp_notify")),
        "accept_dad": pod.on(|| sysctl("ipv6/conf/eth0/accept_dad")),
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
        "bridge": addresses(&of_bridge),
        "bridge_mtu": of_bridge[0]["mtu"],
        "promiscuous": of_bridge[0]["flags"].as_array().unwrap().contains(&json!("PROMISC")),
        "forwarding": machine.on(|| [sysctl("ipv4/ip_forward"), sysctl("ipv6/conf/all/forwarding")]),
        "bridge_ra": machine.on(|| sysctl(&format!("ipv6/conf/{bridge}/accept_ra"))),
        "rules": machine.rules(),
    })
}

/// A result without what is made up each time.
fn plain(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let mac = interface["mac"].take();
        assert_eq!(mac.as_str().unwrap().len(), 17, "{mac}");
        let name = interface["name"].as_str().unwrap();
        assert!(name.len() == 12 || !name.starts_with("veth"), "{name}");
        interface["name"] = name.trim_end_matches(|c: char| c.is_ascii_hexdigit() && name.starts_with("veth")).into();
        let sandbox = interface["sandbox"].as_str().is_some();
        interface["sandbox"] = sandbox.into();
    }
    result
}

#[test]
fn what_is_made_is_what_upstream_makes() {
    let edit = |changes: Value| {
        move |machine: &Machine, version: &str| {
            let mut config = network(machine, "net");
            config["cniVersion"] = version.into();
            for (field, value) in changes.as_object().unwrap() {
                config[field] = value.clone();
            }
            config
        }
    };
    let layer2 = json!({"ipam": {}, "isGateway": false, "ipMasq": false, "hairpinMode": false});
    let routed = json!({
        "hairpinMode": false,
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24", "gateway": "10.5.0.254"}]],
            "dataDir": "DATA", "routes": [{"dst": "10.9.0.0/16", "gw": "10.5.0.7"}, {"dst": "10.8.0.0/16", "priority": 9},
                {"dst": "10.7.0.0/16", "table": 77}]},
        "dns": {"nameservers": ["10.5.0.254"], "search": ["example"]},
    });
    let cases: Vec<(&str, Value)> = vec![
        ("0.3.1", json!({})),
        ("0.4.0", json!({"portIsolation": true, "mtu": 1400})),
        ("1.0.0", json!({"hairpinMode": false, "promiscMode": true, "bridge": "other0"})),
        ("1.1.0", routed),
        ("1.0.0", layer2),
        ("1.1.0", json!({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}, "enabledad": true})),
    ];
    for (version, changes) in cases {
        let seen = [Ours, Upstream].map(|maker| {
            let machine = Machine::new();
            let pod = machine.pod("pod");
            let mut config = edit(changes.clone())(&machine, version);
            if config["ipam"]["dataDir"] == "DATA" {
                config["ipam"]["dataDir"] = json!(machine.data_dir());
            }
            let bridge = config["bridge"].as_str().unwrap().to_string();
            let result = add(maker, &config, "one").pod(&pod).done(&machine);
            let seen = (plain(result.clone()), state(&machine, &pod, &bridge));
            // Upstream's CHECK looks for all routes in the main table, and always asks an IPAM plugin.
            let comparable =
                version != "0.3.1" && !changes.to_string().contains("table") && changes["ipam"] != json!({});
            if comparable {
                // Each believes what the other has made.
                let other = if maker == Ours { Upstream } else { Ours };
                Call::new(other, "bridge", "CHECK", &config, "one").pod(&pod).previous(&result).done(&machine);
            }
            Call::new(maker, "bridge", "DEL", &config, "one").pod(&pod).previous(&result).done(&machine);
            machine.assert_empty("net");
            seen
        });
        assert_eq!(seen[0].0, seen[1].0, "{version} {changes}: the result");
        assert_eq!(seen[0].1, seen[1].1, "{version} {changes}: the state");
    }
}

#[test]
fn pods_reach_each_other_and_the_machine_at_once() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    let (one, two) = (machine.pod("one"), machine.pod("two"));
    let first = add(Ours, &config, "one").pod(&one).done(&machine);
    one.serve("[::]:80".parse().unwrap());
    let second = add(Ours, &config, "two").pod(&two).done(&machine);
    for v6 in [false, true] {
        let server = std::net::SocketAddr::new(address_of(&first, v6), 80).to_string();
        let seen = two.on(|| call_tcp(&server)).map(|ip| ip.to_canonical());
        assert_eq!(seen, Some(address_of(&second, v6)), "between pods nothing is translated");
        assert!(machine.on(|| call_tcp(&server)).is_some());
    }
}

#[test]
fn what_leaves_the_network_comes_from_the_machine() {
    let machine = Machine::new();
    let neighbour = machine.neighbour();
    neighbour.serve("[::]:80".parse().unwrap());
    for (masquerade, id) in [(true, "with"), (false, "without")] {
        let mut config = network(&machine, id);
        config["ipMasq"] = masquerade.into();
        let pod = machine.pod(id);
        let result = add(Ours, &config, id).pod(&pod).done(&machine);
        for (server, machine_ip) in [("10.200.0.2:80", "10.200.0.1"), ("[fd99::2]:80", "fd99::1")] {
            if masquerade {
                let seen = pod.on(|| call_tcp(server)).map(|ip| ip.to_canonical());
                assert_eq!(seen, Some(machine_ip.parse().unwrap()));
            } else {
                assert!(pod.on(|| is_cut_off(server)), "the neighbour knows no way to the pod");
            }
        }
        Call::new(Ours, "bridge", "DEL", &config, id).pod(&pod).previous(&result).done(&machine);
        assert!(machine.rules().is_empty());
    }
}

#[test]
fn common_rules_are_replaced_only_when_they_are_not_ours() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    let chain = || machine.run("nft -a list chain inet cni_plugins_masquerade postrouting");
    let attach = |id| add(Ours, &config, id).pod(&machine.pod(id)).done(&machine);
    attach("one");
    let first = chain();
    assert_eq!(first.matches("# handle").count(), 1 + 3, "{first}");
    attach("two");
    assert_eq!(chain(), first);
    machine.run("nft add rule inet cni_plugins_masquerade postrouting counter");
    attach("three");
    assert_eq!(chain().matches("# handle").count(), 1 + 3, "{}", chain());
    add(Upstream, &config, "four").pod(&machine.pod("four")).done(&machine);
    attach("five");
    assert_eq!(chain().matches("# handle").count(), 1 + 3, "{}", chain());
}

#[test]
fn isolated_ports_reach_the_machine_but_not_each_other() {
    let machine = Machine::new();
    let mut config = network(&machine, "net");
    config["portIsolation"] = true.into();
    let (one, two) = (machine.pod("one"), machine.pod("two"));
    let first = add(Ours, &config, "one").pod(&one).done(&machine);
    one.serve("[::]:80".parse().unwrap());
    add(Ours, &config, "two").pod(&two).done(&machine);
    let server = format!("{}:80", address_of(&first, false));
    assert!(two.on(|| is_cut_off(&server)));
    assert!(machine.on(|| call_tcp(&server)).is_some());
}

#[test]
fn frames_with_a_borrowed_hardware_address_are_thrown_away() {
    let machine = Machine::new();
    let mut config = network(&machine, "net");
    config["macspoofchk"] = true.into();
    let pod = machine.pod("one");
    let result = add(Ours, &config, "one").pod(&pod).done(&machine);
    machine.on(|| {
        let listener = std::net::TcpListener::bind("10.77.0.1:80").unwrap();
        std::thread::spawn(move || listener.incoming().flatten().count());
    });
    assert!(!pod.on(|| is_cut_off("10.77.0.1:80")));
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    pod.run("ip link set eth0 address 02:00:00:00:00:99");
    assert!(pod.on(|| is_cut_off("10.77.0.1:80")));
    pod.run(&format!("ip link set eth0 address {mac}"));
    assert!(!pod.on(|| is_cut_off("10.77.0.1:80")));

    // Upstream's plugin finds and removes our rules; ours removes what it left.
    Call::new(Upstream, "bridge", "CHECK", &config, "one").pod(&pod).previous(&result).done(&machine);
    Call::new(Upstream, "bridge", "DEL", &config, "one").pod(&pod).previous(&result).done(&machine);
    assert_eq!(machine.rules(), Vec::<String>::new());
    let result = add(Upstream, &config, "one").pod(&pod).done(&machine);
    Call::new(Ours, "bridge", "CHECK", &config, "one").pod(&pod).previous(&result).done(&machine);
    Call::new(Ours, "bridge", "DEL", &config, "one").pod(&pod).previous(&result).done(&machine);
    machine.assert_empty("net");
}

#[test]
fn the_bridge_keeps_its_hardware_address() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    let mac = |machine: &Machine| machine.ip("link show dev pods0")[0]["address"].as_str().unwrap().to_string();
    let mut known = None;
    for number in 0..6 {
        let pod = machine.pod(&format!("pod{number}"));
        let result = add(Ours, &config, &format!("c{number}")).pod(&pod).done(&machine);
        let now = mac(&machine);
        assert_eq!(result["interfaces"][0]["mac"], now.as_str());
        assert_eq!(*known.get_or_insert(now.clone()), now);
        Call::new(Ours, "bridge", "DEL", &config, &format!("c{number}")).pod(&pod).done(&machine);
    }
}
