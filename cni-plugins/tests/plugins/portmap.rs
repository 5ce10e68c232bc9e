//! `portmap`: real connections through ports of the machine, and rules that upstream's plugin knows.

use std::net::UdpSocket;

use serde_json::{Value, json};

use crate::machine::{
    Call, Machine, Maker, Namespace, Ours, Upstream, address_of, call_tcp, call_udp, is_cut_off, network,
};

/// A machine with a neighbour that reaches its ports.
struct Scene {
    machine: Machine,
    neighbour: Namespace,
}

/// A pod that answers at port 80, with its part of the chain.
struct Pod {
    netns: Namespace,
    result: Value,
    id: String,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new();
        let neighbour = machine.neighbour();
        Scene { machine, neighbour }
    }

    fn pod(&self, id: &str) -> Pod {
        let netns = self.machine.pod(id);
        let config = network(&self.machine, "net");
        let result = Call::new(Ours, "bridge", "ADD", &config, id).pod(&netns).done(&self.machine);
        netns.serve("[::]:80".parse().unwrap());
        Pod { netns, result, id: id.into() }
    }

    fn call(&self, maker: Maker, command: &'static str, pod: &Pod, ports: &Value) -> Call {
        let call = Call::new(maker, "portmap", command, &portmap("net", ports), &pod.id);
        call.pod(&pod.netns).previous(&pod.result)
    }
}

fn portmap(network: &str, ports: &Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": network, "type": "portmap", "backend": "nftables",
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": ports}})
}

/// TCP and UDP port 8080.
fn usual() -> Value {
    json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}])
}

fn udp_socket(of: &str) -> UdpSocket {
    UdpSocket::bind(of).unwrap()
}

#[test]
fn ports_lead_into_the_pod_from_everywhere() {
    let scene = Scene::new();
    let (pod, other) = (scene.pod("one"), scene.pod("two"));
    let given = scene.call(Ours, "ADD", &pod, &usual()).done(&scene.machine);
    assert_eq!(given, pod.result, "the result passes through");
    scene.call(Ours, "CHECK", &pod, &usual()).done(&scene.machine);
    let from = |place: &Namespace, to: &str| place.on(|| call_tcp(to)).map(|ip| ip.to_canonical().to_string());
    // From outside: the pod sees who calls.
    assert_eq!(from(&scene.neighbour, "10.200.0.1:8080").as_deref(), Some("10.200.0.2"));
    assert_eq!(from(&scene.neighbour, "[fd99::1]:8080").as_deref(), Some("fd99::2"));
    // From another pod, by the machine's address.
    let second = address_of(&other.result, false).to_string();
    assert_eq!(from(&other.netns, "10.200.0.1:8080"), Some(second));
    // From the pod itself: it would answer itself past the machine if it saw its own address.
    assert_eq!(from(&pod.netns, "10.200.0.1:8080").as_deref(), Some("10.77.0.1"));
    assert_eq!(from(&pod.netns, "[fd99::1]:8080").as_deref(), Some("fd77::1"));
    // From the machine: by its addresses, also by its own loopback.
    for to in ["127.0.0.1:8080", "10.200.0.1:8080", "10.77.0.1:8080", "[fd99::1]:8080"] {
        assert!(scene.machine.on(|| call_tcp(to)).is_some(), "{to}");
    }
    let udp = scene.neighbour.on(|| udp_socket("10.200.0.2:0"));
    assert!(call_udp(&udp, "10.200.0.1:8080").is_some());
    let udp = scene.machine.on(|| udp_socket("127.0.0.1:0"));
    assert!(call_udp(&udp, "127.0.0.1:8080").is_some());
    // Other ports and, after DEL, this one don't.
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8081")));
    scene.call(Ours, "DEL", &pod, &usual()).done(&scene.machine);
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8080")));
    assert!(scene.machine.on(|| is_cut_off("127.0.0.1:8080")));
    assert!(scene.call(Ours, "CHECK", &pod, &usual()).refused(&scene.machine).1.contains("0 of"));
    scene.call(Ours, "DEL", &pod, &usual()).done(&scene.machine);
    let rules = scene.machine.rules().join("\n");
    assert!(!rules.contains("dnat"), "{rules}");
}

#[test]
fn a_port_of_one_address_is_on_no_other() {
    let scene = Scene::new();
    let pod = scene.pod("one");
    let ports = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "fd99::1"},
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 0, "containerPort": 80, "protocol": "tcp"},
    ]);
    scene.call(Ours, "ADD", &pod, &ports).done(&scene.machine);
    assert!(scene.machine.on(|| call_tcp("127.0.0.1:8080")).is_some());
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8080")));
    assert!(scene.neighbour.on(|| call_tcp("[fd99::1]:8081")).is_some());
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8081")));
    assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:8082")).is_some());
}

#[test]
fn conditions_keep_others_out() {
    let scene = Scene::new();
    let pod = scene.pod("one");
    let mut call = scene.call(Ours, "ADD", &pod, &usual());
    call.config["conditionsV4"] = json!(["ip saddr != 10.200.0.2"]);
    call.config["conditionsV6"] = json!(["iifname", "!=", "wire"]);
    call.done(&scene.machine);
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8080")));
    assert!(scene.neighbour.on(|| is_cut_off("[fd99::1]:8080")));
    assert!(scene.machine.on(|| call_tcp("10.200.0.1:8080")).is_some());
    scene.neighbour.run("ip addr add 10.200.0.3/24 dev wire");
    scene.neighbour.run("ip addr del 10.200.0.2/24 dev wire");
    scene.neighbour.run("ip addr add 10.200.0.3/24 dev wire");
    assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:8080")).is_some());
}

#[test]
fn the_snat_switches_do_what_they_say() {
    let scene = Scene::new();
    let pod = scene.pod("one");
    let mut all = scene.call(Ours, "ADD", &pod, &usual());
    all.config["masqAll"] = true.into();
    all.done(&scene.machine);
    let seen = scene.neighbour.on(|| call_tcp("10.200.0.1:8080")).unwrap().to_canonical();
    assert_eq!(seen.to_string(), "10.77.0.1");
    let mut none = scene.call(Ours, "ADD", &pod, &usual());
    none.config["snat"] = false.into();
    none.done(&scene.machine);
    assert_eq!(scene.neighbour.on(|| call_tcp("10.200.0.1:8080")).unwrap().to_canonical().to_string(), "10.200.0.2");
    assert!(pod.netns.on(|| is_cut_off("10.200.0.1:8080")), "without SNAT nobody reaches itself");
}

#[test]
fn either_undoes_what_the_other_has_mapped() {
    for (one, other) in [(Ours, Upstream), (Upstream, Ours)] {
        let scene = Scene::new();
        let (pod, stays) = (scene.pod("one"), scene.pod("two"));
        scene.call(one, "ADD", &pod, &usual()).done(&scene.machine);
        let ports = json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]);
        scene.call(other, "ADD", &stays, &ports).done(&scene.machine);
        assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:8080")).is_some());
        scene.call(other, "CHECK", &pod, &usual()).done(&scene.machine);
        scene.call(other, "DEL", &pod, &usual()).done(&scene.machine);
        assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8080")), "{one:?} then {other:?}");
        assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:9090")).is_some());
    }
}

#[test]
fn rules_are_upstreams() {
    let rules = [Ours, Upstream].map(|maker| {
        let scene = Scene::new();
        let pod = scene.pod("one");
        let mut ports = usual();
        ports[1]["hostIP"] = "10.200.0.1".into();
        scene.call(maker, "ADD", &pod, &ports).done(&scene.machine);
        let route = scene.machine.on(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/pods0/route_localnet"));
        let mut rules: Vec<String> = ["ip", "ip6"]
            .into_iter()
            .flat_map(|family| {
                let listed = scene.machine.run(&format!("nft list table {family} cni_hostport"));
                listed.lines().map(|line| format!("{family} {}", line.trim())).collect::<Vec<_>>()
            })
            // A chain that upstream keeps for rules of its former versions.
            .filter(|line| !line.contains("hostip_hostports") && !line.ends_with('}'))
            .collect();
        rules.sort();
        rules.dedup();
        (rules, route.unwrap())
    });
    assert_eq!(rules[0], rules[1]);
}

#[test]
fn a_udp_flow_follows_the_port_to_its_next_pod() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("one"), scene.pod("two"));
    let socket = scene.neighbour.on(|| udp_socket("10.200.0.2:0"));
    // It begins before the port leads anywhere, and would go on so.
    assert!(call_udp(&socket, "10.200.0.1:8080").is_none());
    scene.call(Ours, "ADD", &one, &usual()).done(&scene.machine);
    assert!(call_udp(&socket, "10.200.0.1:8080").is_some());
    scene.call(Ours, "DEL", &one, &usual()).done(&scene.machine);
    assert!(call_udp(&socket, "10.200.0.1:8080").is_none());
    scene.call(Ours, "ADD", &two, &usual()).done(&scene.machine);
    assert!(call_udp(&socket, "10.200.0.1:8080").is_some());
}

#[test]
fn collection_keeps_to_its_network_and_its_list() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("one"), scene.pod("two"));
    let ports = |port: u16| json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
    scene.call(Ours, "ADD", &one, &ports(8081)).done(&scene.machine);
    scene.call(Ours, "ADD", &two, &ports(8082)).done(&scene.machine);
    let three = scene.pod("three");
    let mut other = scene.call(Ours, "ADD", &three, &ports(8083));
    other.config["name"] = "other".into();
    other.done(&scene.machine);
    let mut gc = portmap("net", &json!([]));
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    Call::new(Ours, "portmap", "GC", &gc, "").done(&scene.machine);
    assert!(scene.neighbour.on(|| is_cut_off("10.200.0.1:8081")));
    assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:8082")).is_some());
    assert!(scene.neighbour.on(|| call_tcp("10.200.0.1:8083")).is_some());
}

#[test]
fn wrong_mappings_name_their_field() {
    let machine = Machine::new();
    let pod = machine.pod("pod");
    let with = |field: &str, value: Value| {
        let mut config = portmap("net", &json!([]));
        config["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]});
        config[field] = value;
        config
    };
    let mapping = |mapping: Value| with("runtimeConfig", json!({"portMappings": [mapping]}));
    for (config, code, words) in [
        (mapping(json!({"hostPort": 65536, "containerPort": 80})), 7, "portMappings[0].hostPort"),
        (mapping(json!({"hostPort": 80, "containerPort": 0})), 7, "portMappings[0].containerPort"),
        (mapping(json!({"hostPort": 80, "containerPort": 80, "protocol": "x"})), 7, "protocol"),
        (mapping(json!({"hostPort": 80, "containerPort": 80, "hostIP": "x"})), 7, "hostIP"),
        (mapping(json!({"hostPort": "80", "containerPort": 80})), 7, "hostPort"),
        (with("backend", json!("iptables")), 7, "backend"),
        (with("markMasqBit", json!(3)), 2, "markMasqBit"),
        (with("conditionsV4", json!(["-d", "1.2.3.4"])), 7, "conditionsV4"),
        (with("prevResult", Value::Null), 7, "prevResult"),
    ] {
        let (said, message) = Call::new(Ours, "portmap", "ADD", &config, "one").pod(&pod).refused(&machine);
        assert!(message.contains(words), "{config}: {message}");
        assert_eq!(said, code, "{config}: {message}");
    }
}
