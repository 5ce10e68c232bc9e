//! `bridge` when something is wrong: damage is found, failures are undone, DEL works whatever is left.

use std::io::Write;

use serde_json::{Value, json};

use crate::machine::{Call, Machine, Ours, Upstream, network, run};

fn call(command: &'static str, config: &Value, id: &str) -> Call {
    Call::new(Ours, "bridge", command, config, id)
}

#[test]
fn check_names_what_is_missing() {
    for (damage, on_machine, words) in [
        ("ip addr del 10.77.0.2/16 dev eth0", false, "10.77.0.2/16"),
        ("ip route del default", false, "0.0.0.0/0"),
        ("ip link set eth0 address 02:00:00:00:00:01", false, "hardware address"),
        ("ip link del eth0", false, "is missing"),
        ("ip link set pods0 down", true, "pods0"),
        ("ip addr del 10.77.0.1/16 dev pods0", true, "10.77.0.1/16"),
        ("nft flush chain inet cni_plugins_masquerade masq_checks", true, "masquerade"),
        ("bridge link set dev VETH hairpin off", true, "hairpinMode"),
        ("ip link set VETH nomaster", true, "no port"),
    ] {
        let machine = Machine::new();
        let config = network(&machine, "net");
        let pod = machine.pod("pod");
        let result = call("ADD", &config, "one").pod(&pod).done(&machine);
        call("CHECK", &config, "one").pod(&pod).previous(&result).done(&machine);
        let damage = damage.replace("VETH", result["interfaces"][1]["name"].as_str().unwrap());
        if on_machine {
            machine.on(|| run(&damage))
        } else {
            pod.on(|| run(&damage))
        };
        let (code, message) = call("CHECK", &config, "one").pod(&pod).previous(&result).refused(&machine);
        assert_eq!(code, 999);
        assert!(message.contains(words), "{damage}: {message}");
        call("DEL", &config, "one").pod(&pod).previous(&result).done(&machine);
        machine.assert_empty("net");
    }
    let machine = Machine::new();
    let config = network(&machine, "net");
    let pod = machine.pod("pod");
    let result = call("ADD", &config, "one").pod(&pod).done(&machine);
    assert!(call("CHECK", &config, "one").pod(&pod).refused(&machine).1.contains("prevResult"));
    std::fs::remove_file(machine.data_dir().join("net/10.77.0.2")).unwrap();
    std::fs::remove_file(machine.data_dir().join("net/fd77::2")).unwrap();
    assert!(call("CHECK", &config, "one").pod(&pod).previous(&result).refused(&machine).1.contains("host-local"));
}

#[test]
fn del_is_fine_whatever_is_left() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    let del = |config: &Value| call("DEL", config, "one");
    // Never attached, with and without a namespace.
    let pod = machine.pod("pod");
    del(&config).done(&machine);
    del(&config).pod(&pod).done(&machine);
    // Twice.
    let result = call("ADD", &config, "one").pod(&pod).done(&machine);
    del(&config).pod(&pod).previous(&result).done(&machine);
    del(&config).pod(&pod).previous(&result).done(&machine);
    // The namespace is gone: its link with it, the rest by DEL.
    call("ADD", &config, "one").pod(&pod).done(&machine);
    let path = pod.0.clone();
    drop(pod);
    let mut gone = del(&config);
    gone.netns = path;
    gone.done(&machine);
    assert!(machine.rules().is_empty() && machine.leases("net").is_empty());
    machine.wait_for_pairs_to_go();
    // Its file is gone while somebody is still in it: the previous result knows the machine's end.
    let pod = machine.pod("pod");
    let result = call("ADD", &config, "one").pod(&pod).done(&machine);
    let inside = std::fs::File::open(&pod.0).unwrap();
    drop(pod);
    del(&config).previous(&result).done(&machine);
    machine.assert_empty("net");
    drop(inside);
    // The configuration has become one that ADD refuses.
    let pod = machine.pod("pod");
    call("ADD", &config, "one").pod(&pod).done(&machine);
    let mut damaged = config.clone();
    damaged["vlan"] = 5.into();
    damaged["ipam"]["ranges"] = json!([[{"subnet": "10.0.0.1/33"}]]);
    assert_eq!(call("ADD", &damaged, "two").pod(&pod).refused(&machine).0, 2);
    del(&damaged).pod(&pod).done(&machine);
    machine.assert_empty("net");
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let machine = Machine::new();
    let pod = machine.pod("pod");
    let base = network(&machine, "net");
    let with = |changes: Value| {
        let mut config = base.clone();
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        config
    };
    let full = json!({"type": "host-local", "dataDir": machine.data_dir(),
        "ranges": [[{"subnet": "10.77.0.0/16"}], [{"subnet": "10.9.0.0/30", "rangeEnd": "10.9.0.1"}]]});
    let unreachable = json!({"type": "host-local", "dataDir": machine.data_dir(), "subnet": "10.77.0.0/16",
        "routes": [{"dst": "10.1.0.0/16", "gw": "192.168.7.7"}]});
    machine.run("ip link add taken type veth peer name taken1");
    for (changes, code, words) in [
        (json!({"ipam": full}), 999, "no IP addresses available in range set"),
        (json!({"ipam": unreachable}), 999, "10.1.0.0/16"),
        (json!({"ipam": {"type": "no-such-plugin"}}), 7, "no-such-plugin"),
        (json!({"ipam": {"type": "../host-local"}}), 7, "ipam.type"),
        (json!({"ipam": {"type": "host-local"}}), 7, "ipam.ranges"),
        (json!({"ipam": {"type": "host-local", "subnet": "10.0.0.0/24x"}}), 7, "ipam"),
        (json!({"bridge": "taken"}), 7, "bridge"),
        (json!({"vlan": 100}), 2, "vlan"),
        (json!({"mtu": "1500"}), 7, "mtu"),
        (json!({"isGateway": "yes"}), 7, "isGateway"),
        (json!({"hairpinMode": true, "promiscMode": true}), 7, "promiscMode"),
        (json!({"runtimeConfig": {"mac": "01"}}), 7, "mac"),
    ] {
        let (said, message) = call("ADD", &with(changes.clone()), "one").pod(&pod).refused(&machine);
        assert!(message.contains(words), "{changes}: {message}");
        assert_eq!(said, code, "{changes}: {message}");
        assert!(pod.ip("link show type veth").as_array().unwrap().is_empty());
        assert_eq!(machine.leases("net"), Vec::<String>::new());
        assert_eq!(machine.rules(), Vec::<String>::new());
        assert_eq!(machine.pairs(), Vec::<String>::new());
    }
    // The name is taken in the container: its owner keeps it.
    let result = call("ADD", &base, "one").pod(&pod).done(&machine);
    assert!(call("ADD", &base, "two").pod(&pod).refused(&machine).1.contains("already exists"));
    assert_eq!(machine.leases("net").len(), 2);
    call("CHECK", &base, "one").pod(&pod).previous(&result).done(&machine);
    // Another address on the bridge is somebody's own.
    let other = json!({"type": "host-local", "dataDir": machine.data_dir(), "subnet": "10.78.0.0/16"});
    let second = machine.pod("second");
    let changed = with(json!({"ipam": other}));
    assert!(call("ADD", &changed, "three").pod(&second).refused(&machine).1.contains("already has an IP address"));
    let forced = with(json!({"ipam": other, "forceAddress": true}));
    call("ADD", &forced, "three").pod(&second).done(&machine);
    assert!(machine.ip("addr show dev pods0").to_string().contains("10.78.0.1"));
}

#[test]
fn killed_at_any_moment_leaves_what_the_next_del_removes() {
    let machine = Machine::new();
    let config = network(&machine, "net");
    // How long a whole ADD takes says over which moments to spread.
    let begin = std::time::Instant::now();
    let pod = machine.pod("first");
    call("ADD", &config, "first").pod(&pod).done(&machine);
    let whole = begin.elapsed();
    call("DEL", &config, "first").pod(&pod).done(&machine);
    for number in 0..40u32 {
        let id = format!("c{number}");
        let pod = machine.pod(&id);
        let add = call("ADD", &config, &id).pod(&pod);
        machine.on(|| {
            let mut child = add.command().spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
            std::thread::sleep(whole * number / 40);
            let _ = child.kill();
            let _ = child.wait();
        });
        if number % 2 == 0 {
            call("DEL", &config, &id).pod(&pod).done(&machine);
            assert!(pod.ip("link show type veth").as_array().unwrap().is_empty());
        }
    }
    // The others' namespaces are gone without a DEL: GC finds what is left.
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    call("GC", &gc, "").done(&machine);
    machine.wait_for_pairs_to_go();
    machine.assert_empty("net");
}

#[test]
fn garbage_collection_keeps_to_its_network_and_its_list() {
    let machine = Machine::new();
    let pods: Vec<_> = (0..4).map(|number| machine.pod(&format!("pod{number}"))).collect();
    let mut config = network(&machine, "net");
    config["macspoofchk"] = true.into();
    let mut other = network(&machine, "other");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}]]);
    other["bridge"] = "other0".into();
    for (number, pod) in pods.iter().enumerate() {
        let config = if number < 3 { &config } else { &other };
        call("ADD", config, &format!("c{number}")).pod(pod).done(&machine);
    }
    let mut gc = config.clone();
    assert!(call("GC", &gc, "").refused(&machine).1.contains("valid-attachments"));
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call("GC", &gc, "").done(&machine);
    assert_eq!(machine.leases("net"), ["10.77.0.3", "fd77::3"]);
    assert_eq!(machine.leases("other"), ["10.99.0.2"]);
    let rules = machine.rules().join("\n");
    assert!(rules.contains("id: c1") && rules.contains("id: c3") && rules.contains("macspoofchk-c1-eth0"), "{rules}");
    for gone in ["id: c0", "id: c2", "c0-eth0", "c2-eth0"] {
        assert!(!rules.contains(gone), "{gone} in {rules}");
    }
    // Rules that upstream's plugin made are known by their comments just the same.
    let pod = machine.pod("theirs");
    config["macspoofchk"] = false.into();
    Call::new(Upstream, "bridge", "ADD", &config, "theirs").pod(&pod).done(&machine);
    assert!(machine.rules().join("\n").contains("id: theirs"));
    call("GC", &gc, "").done(&machine);
    assert!(!machine.rules().join("\n").contains("id: theirs"));
}
