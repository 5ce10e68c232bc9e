//! The CRI server's CNI caller with real plugins: ours, upstream's, and such that misbehave.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop_network::{Attachment, Network, NetworkConfig};
use serde_json::{Value, json};

use crate::machine::{Machine, Maker, Namespace, Ours, Upstream, call_tcp, is_cut_off, network};

/// A caller on a machine, with a folder of plugins of its own.
struct Scene {
    machine: Machine,
    network: Network,
}

impl Scene {
    fn new(maker: Maker, version: &str) -> Scene {
        let machine = Machine::new();
        let folder = machine.folder.path();
        for name in ["conf", "bin"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        for plugin in ["bridge", "host-local", "portmap"] {
            std::os::unix::fs::symlink(maker.folder().join(plugin), folder.join("bin").join(plugin)).unwrap();
        }
        let config = NetworkConfig {
            conf_dir: folder.join("conf"),
            bin_dirs: vec![folder.join("bin")],
            cache_dir: folder.join("cache"),
            exec_timeout: Duration::from_secs(20),
        };
        let portmap = json!({"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}});
        let scene = Scene { network: Network::new(config), machine };
        scene.configure(version, json!([network(&scene.machine, "net"), portmap]));
        scene
    }

    fn configure(&self, version: &str, plugins: Value) {
        let list = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        std::fs::write(self.machine.folder.path().join("conf/10-net.conflist"), list.to_string()).unwrap();
    }

    /// A plugin that is a shell script.
    fn script(&self, name: &str, text: &str) {
        let path = self.machine.folder.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Asks the caller on the machine.
    fn ask<T: Send>(&self, work: impl AsyncFnOnce(&Network) -> T + Send) -> T {
        self.machine.on(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(&self.network))
        })
    }
}

fn attachment(id: &str, pod: &Namespace) -> Attachment {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    Attachment {
        container_id: id.into(),
        netns: pod.0.clone(),
        ifname: "eth0".into(),
        args: vec![("IgnoreUnknown".into(), "1".into()), ("K8S_POD_NAME".into(), "one".into())],
        capabilities: [("portMappings".to_string(), ports)].into_iter().collect(),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[test]
fn a_pod_is_attached_checked_and_detached_by_either_makers_plugins() {
    for (maker, version) in [(Ours, "1.1.0"), (Upstream, "1.1.0"), (Ours, "0.4.0"), (Upstream, "0.3.1")] {
        let scene = Scene::new(maker, version);
        let pod = scene.machine.pod("pod");
        let one = attachment("one", &pod);
        scene.ask(async |network| network.status().await).unwrap();
        assert!(scene.ask(async |network| network.check(&one).await).is_err());
        let added = scene.ask(async |network| network.attach(&one).await).unwrap();
        assert_eq!(added.ips, ["10.77.0.2".parse::<std::net::IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
        pod.serve("[::]:80".parse().unwrap());
        assert!(scene.machine.on(|| call_tcp("127.0.0.1:8080")).is_some(), "{maker:?} {version}");
        scene.ask(async |network| network.check(&one).await).unwrap();
        assert_eq!(scene.network.attached(), ["one"]);
        // The other maker's plugins take over: they detach what these have attached.
        let taker = if maker == Ours { Upstream } else { Ours };
        for plugin in ["bridge", "host-local", "portmap"] {
            let path = scene.machine.folder.path().join("bin").join(plugin);
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(taker.folder().join(plugin), path).unwrap();
        }
        // What is configured today has nothing to do with how the pod was attached.
        scene.configure("1.0.0", json!([{"type": "bridge", "bridge": "another0"}]));
        let bare = Attachment { capabilities: Default::default(), ..one.clone() };
        scene.ask(async |network| network.detach(&bare).await).unwrap();
        assert!(scene.machine.on(|| is_cut_off("127.0.0.1:8080")));
        scene.machine.assert_empty("net");
        assert!(scene.network.attached().is_empty());
        scene.ask(async |network| network.detach(&bare).await).unwrap();
    }
}

#[test]
fn collection_detaches_what_the_cache_knows_and_plugins_find_the_rest() {
    let scene = Scene::new(Ours, "1.1.0");
    let pods: Vec<_> = (0..3).map(|number| scene.machine.pod(&format!("pod{number}"))).collect();
    for (number, pod) in pods.iter().enumerate() {
        let mut one = attachment(&format!("c{number}"), pod);
        one.capabilities["portMappings"][0]["hostPort"] = json!(8080 + number);
        scene.ask(async |network| network.attach(&one).await).unwrap();
    }
    // The cache has lost one, and another runtime keeps its own beside.
    let results = scene.machine.folder.path().join("cache/results");
    std::fs::remove_file(results.join("net-c2-eth0")).unwrap();
    let foreign = json!({"kind": "cniCacheV1", "containerId": "foreign", "ifName": "eth0", "networkName": "net"});
    std::fs::write(results.join("net-foreign-eth0"), foreign.to_string()).unwrap();
    let lease = scene.machine.data_dir().join("net/10.77.3.3");
    std::fs::write(&lease, "foreign\r\neth0").unwrap();
    let valid = [("c1".to_string(), "eth0".to_string())];
    scene.ask(async |network| network.collect(&valid).await).unwrap();
    assert_eq!(scene.machine.leases("net"), ["10.77.0.3", "10.77.3.3", "fd77::3"]);
    assert_eq!(scene.network.attached(), ["c1"]);
    let rules = scene.machine.rules().join("\n");
    assert!(rules.contains("c1") && !rules.contains("c0") && !rules.contains("c2"), "{rules}");
    assert!(results.join("net-foreign-eth0").exists());
}

#[test]
fn a_failed_chain_is_undone_and_an_undo_that_fails_is_remembered() {
    let scene = Scene::new(Ours, "1.0.0");
    let pod = scene.machine.pod("pod");
    let one = attachment("one", &pod);
    scene.script(
        "broken",
        r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code": 42, "msg": "words of its own"}'; exit 1"#,
    );
    let bridge = network(&scene.machine, "net");
    scene.configure("1.0.0", json!([bridge, {"type": "broken"}]));
    let error = chain(&scene.ask(async |network| network.attach(&one).await).unwrap_err());
    for words in ["\"broken\"", "\"net\"", "ADD", "words of its own"] {
        assert!(error.contains(words), "{error}");
    }
    scene.machine.assert_empty("net");
    assert!(scene.network.attached().is_empty());
    scene.script("broken", "echo boom >&2; exit 3");
    let error = chain(&scene.ask(async |network| network.attach(&one).await).unwrap_err());
    assert!(error.contains("boom") && error.contains('3'), "{error}");
    assert_eq!(scene.network.attached(), ["one"], "to be detached when that works again");
    scene.script("broken", "exit 0");
    scene.ask(async |network| network.detach(&one).await).unwrap();
    scene.machine.assert_empty("net");
}

#[test]
fn plugins_that_are_missing_or_print_garbage_are_named() {
    let scene = Scene::new(Ours, "1.1.0");
    let pod = scene.machine.pod("pod");
    let one = attachment("one", &pod);
    let bridge = network(&scene.machine, "net");
    let long = "i=0; while [ $i -lt 40000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done";
    for (script, words) in [
        (None, "failed to find plugin \"odd\""),
        (Some("echo this is not JSON"), "not JSON"),
        (Some("echo '[1, 2'"), "not JSON"),
        (Some("echo '{}'"), "no address"),
        (Some("exit 0"), "no address"),
        (Some("kill -9 $$"), "signal: 9"),
        (Some("echo text; exit 1"), "no error of CNI"),
        (Some("echo 5; exit 1"), "no error of CNI"),
        (Some(long), "1048576 bytes"),
    ] {
        if let Some(script) = script {
            scene.script("odd", script);
        }
        scene.configure("1.0.0", json!([bridge, {"type": "odd"}]));
        let error = chain(&scene.ask(async |network| network.attach(&one).await).unwrap_err());
        assert!(error.contains(words), "{script:?}: {error}");
        // A plugin that can't detach either holds the pod back until it is mended.
        scene.script("odd", "exit 0");
        scene.ask(async |network| network.detach(&one).await).unwrap();
        scene.machine.assert_empty("net");
        std::fs::remove_file(scene.machine.folder.path().join("bin/odd")).unwrap();
    }
    scene.configure("1.1.0", json!([{"type": "odd"}]));
    let error = chain(&scene.ask(async |network| network.status().await).unwrap_err());
    assert!(error.contains("odd") && error.contains("install it"), "{error}");
    std::fs::remove_file(scene.machine.folder.path().join("conf/10-net.conflist")).unwrap();
    assert!(scene.ask(async |network| network.status().await).is_err());
}

#[test]
fn a_plugin_that_hangs_is_killed_with_everything_it_started() {
    let mut scene = Scene::new(Ours, "1.0.0");
    let folder = scene.machine.folder.path().to_path_buf();
    let config = NetworkConfig {
        conf_dir: folder.join("conf"),
        bin_dirs: vec![folder.join("bin")],
        cache_dir: folder.join("cache"),
        exec_timeout: Duration::from_secs(1),
    };
    scene.network = Network::new(config);
    let pids = folder.join("pids");
    // The plugin waits for one that it has called, as a plugin does for its IPAM plugin.
    scene.script(
        "hangs",
        &format!("[ $CNI_COMMAND = DEL ] && exit 0; echo $$ >> {0}; sleep 1000 & echo $! >> {0}; wait", pids.display()),
    );
    let bridge = network(&scene.machine, "net");
    scene.configure("1.0.0", json!([bridge, {"type": "hangs"}]));
    let pod = scene.machine.pod("pod");
    let one = attachment("one", &pod);
    let begin = Instant::now();
    let error = chain(&scene.ask(async |network| network.attach(&one).await).unwrap_err());
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    for words in ["\"hangs\"", "\"net\"", "killed"] {
        assert!(error.contains(words), "{error}");
    }
    let started: Vec<String> = std::fs::read_to_string(&pids).unwrap().lines().map(str::to_string).collect();
    assert_eq!(started.len(), 2);
    let end = Instant::now() + Duration::from_secs(10);
    while started.iter().any(|pid| is_alive(pid)) {
        assert!(Instant::now() < end, "{started:?} live on");
        std::thread::yield_now();
    }
    scene.machine.assert_empty("net");
}

/// Whether a process runs; one that nobody has waited for does not.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn an_attach_that_was_cut_short_is_known_to_the_next_caller() {
    let scene = Scene::new(Ours, "1.1.0");
    let pod = scene.machine.pod("pod");
    let one = attachment("one", &pod);
    scene.script("slow", "sleep 1000");
    let bridge = network(&scene.machine, "net");
    scene.configure("1.1.0", json!([bridge, {"type": "slow"}]));
    scene.ask(async |network| {
        let attach = network.attach(&one);
        let cut = async {
            while std::fs::read_dir(scene.machine.data_dir().join("net")).map_or(0, Iterator::count) < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! { _ = attach => panic!("it can't end"), () = cut => {} }
    });
    let next = scene.network.clone();
    assert_eq!(next.attached(), ["one"]);
    scene.script("slow", "exit 0");
    scene.ask(async |_| next.collect(&[]).await).unwrap();
    assert!(next.attached().is_empty());
    drop(pod);
    assert!(scene.machine.leases("net").is_empty());
}

#[test]
fn plugins_beside_the_list_belong_to_it() {
    let scene = Scene::new(Ours, "1.1.0");
    let conf = scene.machine.folder.path().join("conf");
    std::fs::create_dir(conf.join("net")).unwrap();
    std::fs::write(conf.join("net/20-more.conf"), r#"{"type": "more"}"#).unwrap();
    let types = |scene: &Scene| -> Vec<String> {
        let plugins = scene.network.list().unwrap().plugins;
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(types(&scene), ["bridge", "portmap", "more"]);
    std::fs::write(conf.join("net/20-more.conf"), "{").unwrap();
    let error = scene.network.list().unwrap_err().to_string();
    assert!(error.contains("20-more.conf"), "{error}");
    let alone =
        json!({"cniVersion": "1.1.0", "name": "net", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "a"}]});
    std::fs::write(conf.join("10-net.conflist"), alone.to_string()).unwrap();
    assert_eq!(types(&scene), ["a"]);
}

#[test]
fn the_shipped_configuration_works() {
    let scene = Scene::new(Ours, "1.1.0");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/cni/10-orlop.conflist");
    let mut list: Value = serde_json::from_slice(&std::fs::read(shipped).unwrap()).unwrap();
    // Where it keeps its addresses is the only thing that is the machine's own.
    list["plugins"][0]["ipam"]["dataDir"] = json!(scene.machine.data_dir());
    let conf = scene.machine.folder.path().join("conf/10-net.conflist");
    std::fs::write(conf, list.to_string()).unwrap();
    let pod = scene.machine.pod("pod");
    let one = attachment("one", &pod);
    scene.ask(async |network| network.status().await).unwrap();
    let added = scene.ask(async |network| network.attach(&one).await).unwrap();
    assert_eq!(added.ips.len(), 2);
    pod.serve("[::]:80".parse().unwrap());
    for to in [format!("{}:80", added.ips[0]), format!("[{}]:80", added.ips[1]), "127.0.0.1:8080".to_string()] {
        assert!(scene.machine.on(|| call_tcp(&to)).is_some(), "{to}");
    }
    scene.ask(async |network| network.check(&one).await).unwrap();
    scene.ask(async |network| network.collect(&[]).await).unwrap();
    scene.machine.assert_empty("orlop");
}
