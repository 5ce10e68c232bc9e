//! `host-local`: addresses and their files, shared with upstream's plugin.

use serde_json::{Value, json};

use crate::machine::{Call, Machine, Maker, Ours, Upstream};

fn config(machine: &Machine, ipam: Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "ipam": ipam});
    config["ipam"]["type"] = "host-local".into();
    config["ipam"]["dataDir"] = json!(machine.data_dir());
    config
}

fn call(maker: Maker, command: &'static str, config: &Value, id: &str) -> Call {
    Call::new(maker, "host-local", command, config, id)
}

/// A call that has to name a namespace.
fn add(machine: &Machine, maker: Maker, config: &Value, id: &str) -> Call {
    call(maker, "ADD", config, id).pod(machine.any_pod())
}

/// Every file with its bytes and mode.
fn files(machine: &Machine) -> Vec<(String, String, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let entries = std::fs::read_dir(machine.data_dir().join("net")).unwrap().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text, entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    files.sort();
    files
}

fn ips(result: &Value) -> Vec<&str> {
    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect()
}

#[test]
fn files_and_answers_are_upstreams() {
    let resolv = |machine: &Machine| {
        let path = machine.folder.path().join("resolv.conf");
        std::fs::write(&path, "# words\nnameserver 10.0.0.10\nsearch a b\noptions ndots:5\ndomain c\n").unwrap();
        path
    };
    let cases: [(Value, &str); 6] = [
        (json!({"subnet": "10.1.0.0/24"}), ""),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "gateway": "10.1.0.254"}],
            [{"subnet": "fd01::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.2.0.0/16", "gw": "10.1.0.3"}]}),
            "",
        ),
        (json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.1.1.0/29", "rangeEnd": "10.1.1.4"}]]}), ""),
        (json!({"subnet": "10.1.0.0/24", "resolvConf": "RESOLV"}), ""),
        (json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.20"}), "IP=10.1.0.7"),
        (json!({"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.250", "rangeEnd": "10.1.1.5"}), ""),
    ];
    for (mut ipam, args) in cases {
        let seen = [Ours, Upstream].map(|maker| {
            let machine = Machine::new();
            if ipam["resolvConf"].is_string() {
                ipam["resolvConf"] = json!(resolv(&machine));
            }
            let config = config(&machine, ipam.clone());
            let mut answers = Vec::new();
            for number in 0..5 {
                let id = format!("c{number}");
                let done = add(&machine, maker, &config, &id).args(if number == 0 { args } else { "" }).run(&machine);
                answers.push(done.map_err(|error| error["msg"].as_str().unwrap().to_string()));
            }
            call(maker, "DEL", &config, "c1").done(&machine);
            answers.push(add(&machine, maker, &config, "c9").run(&machine).map_err(|_| "full".to_string()));
            (answers, files(&machine))
        });
        assert_eq!(seen[0].0, seen[1].0, "{ipam}: the answers");
        assert_eq!(seen[0].1, seen[1].1, "{ipam}: the files");
    }
}

#[test]
fn either_gives_back_what_the_other_has_given_out() {
    for (one, other) in [(Ours, Upstream), (Upstream, Ours)] {
        let machine = Machine::new();
        let config = config(&machine, json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd01::/64"}]]}));
        let first = add(&machine, one, &config, "a").done(&machine);
        let second = add(&machine, other, &config, "b").done(&machine);
        assert_eq!((ips(&first)[0], ips(&second)[0]), ("10.1.0.2/29", "10.1.0.3/29"));
        call(other, "CHECK", &config, "a").pod(machine.any_pod()).previous(&first).done(&machine);
        call(other, "DEL", &config, "a").done(&machine);
        assert!(call(one, "CHECK", &config, "a").pod(machine.any_pod()).previous(&first).run(&machine).is_err());
        assert_eq!(machine.leases("net"), ["10.1.0.3", "fd01::3"]);
        // The turn goes on where the other left it.
        assert_eq!(ips(&add(&machine, one, &config, "c").done(&machine))[0], "10.1.0.4/29");
        call(one, "DEL", &config, "b").done(&machine);
        call(other, "DEL", &config, "c").done(&machine);
        assert!(machine.leases("net").is_empty());
    }
}

#[test]
fn a_full_range_says_so_and_serves_again_after_a_del() {
    let machine = Machine::new();
    let config = config(&machine, json!({"subnet": "10.1.0.0/29"}));
    for number in 0..5 {
        add(&machine, Ours, &config, &format!("c{number}")).done(&machine);
    }
    let ours = add(&machine, Ours, &config, "more").refused(&machine).1;
    assert_eq!(ours.trim(), add(&machine, Upstream, &config, "more").refused(&machine).1.trim());
    assert!(ours.contains("no IP addresses available in range set: 10.1.0.1-10.1.0.6"), "{ours}");
    call(Ours, "DEL", &config, "c3").done(&machine);
    assert_eq!(ips(&add(&machine, Ours, &config, "more").done(&machine)), ["10.1.0.5/29"]);
}

#[test]
fn a_second_add_fails_and_takes_nothing_from_the_first() {
    let machine = Machine::new();
    let config = config(&machine, json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]}));
    add(&machine, Ours, &config, "a").done(&machine);
    assert!(add(&machine, Ours, &config, "a").refused(&machine).1.contains("duplicate allocation is not allowed"));
    assert_eq!(machine.leases("net"), ["10.1.0.2", "fd01::2"]);
}

#[test]
fn addresses_that_are_asked_for() {
    let machine = Machine::new();
    let mut config = config(&machine, json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]}));
    config["runtimeConfig"] = json!({"ips": ["10.1.0.50", "fd01::50/64"]});
    assert_eq!(ips(&add(&machine, Ours, &config, "a").done(&machine)), ["10.1.0.50/24", "fd01::50/64"]);
    let (_, message) = add(&machine, Ours, &config, "b").refused(&machine);
    assert!(message.contains("requested IP address 10.1.0.50 is not available"), "{message}");
    for (asked, words) in [
        ("10.1.0.1", "is subnet's gateway"),
        ("10.9.0.1", "failed to allocate all requested IPs: 10.9.0.1"),
        ("ten", "\"ten\" is no address"),
    ] {
        config["runtimeConfig"] = json!({"ips": [asked]});
        assert!(add(&machine, Ours, &config, "b").refused(&machine).1.contains(words), "{asked}");
    }
    assert_eq!(machine.leases("net"), ["10.1.0.50", "fd01::50"]);
}

#[test]
fn wrong_ranges_name_their_field() {
    let machine = Machine::new();
    for (ipam, words) in [
        (json!({"ranges": [[{"subnet": "10.1.0.0/31"}]]}), "ipam.ranges[0]"),
        (json!({"ranges": [[{"subnet": "10.1.0.7/24"}]]}), "host bits"),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}), "ipam.ranges[1]"),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}), "mixed"),
        (json!({"ranges": [[]]}), "empty range set"),
        (json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}), "RangeStart 10.2.0.1"),
        (json!({"subnet": "10.1.0.0/24", "gateway": "gw"}), "ipam"),
        (json!({"subnet": "10.1.0.0/24", "resolvConf": "/no/such/file"}), "ipam.resolvConf"),
    ] {
        let (code, message) = add(&machine, Ours, &config(&machine, ipam.clone()), "a").refused(&machine);
        assert_eq!(code, 7, "{message}");
        assert!(message.contains(words), "{ipam}: {message}");
    }
    assert!(!machine.data_dir().join("net").exists(), "a wrong configuration leaves no folder");
}

#[test]
fn collection_gives_back_what_is_not_valid_and_what_was_never_finished() {
    let machine = Machine::new();
    let mut config = config(&machine, json!({"subnet": "10.1.0.0/24"}));
    for id in ["a", "b", "c"] {
        add(&machine, Ours, &config, id).done(&machine);
    }
    let folder = machine.data_dir().join("net");
    std::fs::write(folder.join("10.1.0.77"), "").unwrap();
    std::fs::write(folder.join("10.1.0.78"), "old-format").unwrap();
    std::fs::write(folder.join("10.1.0.79"), "  b \n").unwrap();
    config["cni.dev/valid-attachments"] =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "old-format", "ifname": "eth0"}]);
    call(Ours, "GC", &config, "").done(&machine);
    assert_eq!(machine.leases("net"), ["10.1.0.3", "10.1.0.78", "10.1.0.79"]);
}
