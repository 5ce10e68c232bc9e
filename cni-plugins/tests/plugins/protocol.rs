//! What every plugin says to a call that is wrong, and how plugins are installed.

use std::process::Command;

use serde_json::json;

use crate::machine::{Call, Machine, Ours, Upstream, network};

#[test]
fn versions_are_told() {
    let machine = Machine::new();
    for plugin in ["bridge", "host-local", "loopback", "portmap"] {
        let said = Call::new(Ours, plugin, "VERSION", &json!({}), "").done(&machine);
        assert_eq!(said["cniVersion"], "1.1.0");
        let spoken = said["supportedVersions"].as_array().unwrap();
        assert!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"].iter().all(|version| spoken.contains(&json!(version))));
    }
}

#[test]
fn wrong_calls_have_upstreams_codes() {
    let machine = Machine::new();
    let pod = machine.pod("pod");
    let config = network(&machine, "net");
    let base = |maker| Call::new(maker, "bridge", "ADD", &config, "one").pod(&pod);
    let version = |mut call: Call, version: &str| {
        call.config["cniVersion"] = version.into();
        call
    };
    type Change<'a> = &'a dyn Fn(Call) -> Call;
    let cases: [(&str, u64, Change<'_>); 9] = [
        ("no command of the specification", 4, &|call| Call { command: "MAKE", ..call }),
        ("no container", 4, &|call| Call { container: String::new(), ..call }),
        ("a wrong container", 4, &|call| Call { container: "../x".into(), ..call }),
        ("no namespace", 4, &|call| Call { netns: Default::default(), ..call }),
        ("a wrong interface", 4, &|call| Call { ifname: "a/b", ..call }),
        ("a long interface", 4, &|call| Call { ifname: "abcdefghijklmnop", ..call }),
        ("a version of tomorrow", 1, &|call| version(call, "7.0.0")),
        ("no name of a network", 7, &|mut call| {
            call.config["name"] = "".into();
            call
        }),
        ("CHECK before its time", 1, &|call| version(Call { command: "CHECK", ..call }, "0.3.1")),
    ];
    for (what, code, change) in cases {
        let said = change(base(Ours)).refused(&machine);
        let theirs = change(base(Upstream)).refused(&machine);
        assert_eq!((said.0, theirs.0), (code, code), "{what}: {} / {}", said.1, theirs.1);
    }
    // Several that are missing are named together.
    let none = Call { container: String::new(), netns: Default::default(), ..base(Ours) };
    assert!(none.refused(&machine).1.contains("[CNI_CONTAINERID,CNI_NETNS]"));
    let file = Call { netns: "/etc/hostname".into(), ..base(Ours) };
    assert_eq!(file.refused(&machine).0, 8);
    // The machine's own namespace is not a container's.
    for command in ["ADD", "DEL"] {
        let mut own = Call::new(Ours, "loopback", command, &json!({"cniVersion": "1.0.0", "name": "n"}), "one");
        own.netns = "/proc/self/ns/net".into();
        let (code, message) = own.refused(&machine);
        assert_eq!(code, 8, "{message}");
        assert!(message.contains("own"), "{message}");
    }
    assert!(machine.ip("link show dev lo")[0]["flags"].to_string().contains("UP"));
}

#[test]
fn status_tells_what_add_would_fail_with() {
    let machine = Machine::new();
    let mut config = network(&machine, "net");
    Call::new(Ours, "bridge", "STATUS", &config, "").done(&machine);
    config["ipam"]["ranges"] = json!([[{"subnet": "10.0.0.0/33"}]]);
    assert_eq!(Call::new(Ours, "bridge", "STATUS", &config, "").refused(&machine).0, 7);
    config["ipam"]["type"] = "no-such-plugin".into();
    assert!(Call::new(Ours, "bridge", "STATUS", &config, "").refused(&machine).1.contains("no-such-plugin"));
}

#[test]
fn another_makers_ipam_plugin_is_run() {
    // Upstream's host-local under our bridge: no file of ours in the path.
    let machine = Machine::new();
    let pod = machine.pod("pod");
    let mixed = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(Ours.folder().join("bridge"), mixed.path().join("bridge")).unwrap();
    std::os::unix::fs::symlink(Upstream.folder().join("host-local"), mixed.path().join("host-local")).unwrap();
    let config = network(&machine, "net");
    let add = Call::new(Ours, "bridge", "ADD", &config, "one").pod(&pod);
    let output = machine.on(|| {
        let mut command = add.command();
        command.env("CNI_PATH", format!("/no/such/folder:{}", mixed.path().display()));
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{output:?}");
    assert_eq!(machine.leases("net"), ["10.77.0.2", "fd77::2"]);
    Call::new(Ours, "bridge", "DEL", &config, "one").pod(&pod).done(&machine);
    machine.assert_empty("net");
}

#[test]
fn installing_again_replaces_old_ones_and_leaves_those_of_others() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let install = || {
        let program = env!("CARGO_BIN_EXE_orlop-cni-plugins");
        assert!(Command::new(program).arg("install").arg(folder.path().join("bin")).status().unwrap().success());
        let mut names: Vec<_> = std::fs::read_dir(folder.path().join("bin"))
            .unwrap()
            .flatten()
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino()))
            .collect();
        names.sort();
        names
    };
    let first = install();
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bridge", "host-local", "loopback", "portmap"]);
    assert_eq!(install(), first);
    let program = env!("CARGO_BIN_EXE_orlop-cni-plugins");
    let portmap = folder.path().join("bin/portmap");
    let mut old = std::fs::read(program).unwrap();
    old.push(0);
    std::fs::remove_file(&portmap).unwrap();
    std::fs::write(&portmap, old).unwrap();
    let renewed = install();
    assert_eq!(renewed[..3], first[..3]);
    assert_eq!(std::fs::read(&portmap).unwrap(), std::fs::read(program).unwrap());
    std::fs::remove_file(&portmap).unwrap();
    std::fs::write(&portmap, "a program of somebody else").unwrap();
    install();
    assert_eq!(std::fs::read(&portmap).unwrap(), b"a program of somebody else");
    // By hand, without a command, a plugin tells what it is.
    let output = Command::new(folder.path().join("bin/bridge")).env_remove("CNI_COMMAND").output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stderr).unwrap().contains("1.1.0"));
    assert!(Command::new(program).arg("uninstall").arg(folder.path().join("bin")).status().unwrap().success());
    let left: Vec<_> = std::fs::read_dir(folder.path().join("bin")).unwrap().flatten().collect();
    assert_eq!(left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["portmap"]);
    assert_eq!(Command::new(program).arg("nonsense").output().unwrap().status.code(), Some(2));
}
