//! Hooks of containers of a pod by the built-in runtime: when they run, where, what they are told, and what comes of those
//! that fail or hang.

use std::path::{Path, PathBuf};

use orlop_container::config::{Config, Hook, Hooks};
use orlop_container::protocol::{Reply, Request};
use orlop_container::sandbox;
use orlop_tests::shim::{DEADLINE, ShimPod, with_pod, with_pod_of};
use orlop_tests::world::until;
use serde_json::Value;

/// A hook that runs a script of the machine.
fn hook(script: &str) -> Hook {
    let args = ["sh", "-c", script].map(String::from).to_vec();
    Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into()], timeout: Some(10) }
}

/// A container of a pod with a hook of each kind, which note what they are told in a file of their own.
fn noting(pod: &ShimPod, id: &str, args: &[&str]) -> Config {
    let mut config = pod.config(id, args);
    config.root.path = "rootfs".into();
    let mut hooks = Hooks::default();
    let names = hooks.lists().map(|(name, _)| name);
    for (name, list) in names.into_iter().zip(hooks.lists_mut()) {
        let folder = if name == "startContainer" { "/".into() } else { pod.folder.display().to_string() };
        let script = format!("cat > {folder}/{name}.json; echo {name} $A $HOME >> {folder}/order");
        list.push(hook(&script));
    }
    config.hooks = Some(hooks);
    config
}

fn order(pod: &ShimPod) -> Vec<String> {
    let text = std::fs::read_to_string(pod.folder.join("order")).unwrap_or_default();
    text.lines().map(|line| line.trim().to_string()).collect()
}

fn refused(reply: Reply) -> String {
    match reply {
        Reply::Failed { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

/// The folder that is a container's bundle.
fn bundle(pod: &ShimPod, id: &str) -> PathBuf {
    pod.folder.join("containers").join(id)
}

#[test]
fn each_point_has_its_hooks_and_each_hook_its_state() {
    with_pod("hooks", |pod| {
        let mut config = noting(pod, "c1", &["sh", "-c", "cat /order /startContainer.json; echo; sleep 1000"]);
        config.annotations = [("dev.orlop.test".to_string(), "hook".to_string())].into();
        let pid = match pod.create("c1", &config, |_| {}) {
            Reply::Created { pid } => pid,
            other => panic!("{other:?}"),
        };
        assert_eq!(order(pod), ["prestart b", "createRuntime b", "createContainer b"]);
        assert!(matches!(pod.call(&Request::Start { id: "c1".into() }), Reply::Started { .. }));
        assert_eq!(order(pod)[3..], ["poststart b"]);
        until("it speaks", || pod.log("c1").contains("annotations").then_some(()));
        let log = pod.log("c1");
        let (first, inside) = log.split_once('\n').unwrap();
        assert_eq!(first.trim_end(), "startContainer b");
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done));
        assert_eq!(order(pod)[4..], ["poststop b"]);
        let statuses = [
            ("prestart", "creating"),
            ("createRuntime", "creating"),
            ("createContainer", "creating"),
            ("startContainer", "created"),
            ("poststart", "running"),
            ("poststop", "stopped"),
        ];
        for (name, status) in statuses {
            let text = std::fs::read_to_string(pod.folder.join(format!("{name}.json")));
            let state: Value = serde_json::from_str(&text.unwrap_or_else(|_| inside.into())).unwrap();
            assert_eq!((state["status"].as_str(), state["id"].as_str()), (Some(status), Some("c1")), "{name}");
            assert_eq!(state["pid"].as_i64(), (name != "poststop").then_some(pid.into()), "{name}");
            assert_eq!(state["bundle"], bundle(pod, "c1").display().to_string(), "{name}");
            assert_eq!(state["annotations"]["dev.orlop.test"], "hook", "{name}");
        }
        assert!(!bundle(pod, "c1").join("poststop").exists(), "nothing is owed any more");
    });
}

/// Where hooks of the creation run, and what they find there.
fn looks_around(name: &str, ids: Option<u32>) {
    // Files of the machine's root can't be made in a root whose ids are mapped.
    let make = if ids.is_none() { "echo made > rootfs/made" } else { "echo made > /dev/null" };
    let mapping = ids.map(|host_id| vec![orlop_container::config::IdMapping { container_id: 0, host_id, size: 65536 }]);
    let user =
        mapping.map(|ids| orlop_container::protocol::UserMappings { uid_mappings: ids.clone(), gid_mappings: ids });
    with_pod_of(
        name,
        |spec| spec.user = user,
        |pod| {
            let own = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap().display().to_string();
            let network = std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string();
            let mut config = pod.config("c1", &["sh", "-c", "cat /made; ls /; grep -c . /proc/mounts"]);
            config.root.path = "rootfs".into();
            let file = pod.folder.join("around").display().to_string();
            // The program and all that it needs are the machine's; the root lies where the bundle says.
            let look = hook(&format!(
                "for kind in mnt net; do readlink /proc/self/ns/$kind; done >> {file}; pwd >> {file}; \
                 [ -x rootfs/bin/sh ] && {make}; [ -e rootfs/proc/self ] && echo proc >> {file}; true"
            ));
            config.hooks =
                Some(Hooks { create_runtime: vec![look.clone()], create_container: vec![look], ..Hooks::default() });
            let (code, log) = pod.run("c1", &config);
            assert_eq!((code, log.lines().next() == Some("made")), (0, ids.is_none()), "{log}");
            assert!(!log.contains("sandbox") && log.lines().last().unwrap().parse::<u32>().unwrap() < 30, "{log}");
            let text = std::fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let folder = bundle(pod, "c1").display().to_string();
            assert_eq!(lines[..3], [&own, &network, &folder], "on the machine");
            assert!(lines[3] != own && lines[4] != network, "in the container's namespaces");
            assert_eq!(lines[5..], [&folder, "proc"], "with its root at its place");
            assert_eq!(std::fs::read_dir(bundle(pod, "c1").join("rootfs")).unwrap().count(), 0, "for nobody else");
        },
    );
}

#[test]
fn hooks_of_the_creation_run_where_the_specification_says() {
    looks_around("hooks-around", None);
}

#[test]
fn so_they_do_in_a_pod_with_a_user_namespace() {
    looks_around("hooks-mapped", Some(300_000));
}

#[test]
fn a_hook_that_fails_is_named_and_ends_the_container() {
    with_pod("hooks-fail", |pod| {
        let names = Hooks::default().lists().map(|(name, _)| name);
        for (at, name) in names.into_iter().enumerate() {
            let id = format!("c{at}");
            let _ = std::fs::remove_file(pod.folder.join("order"));
            let mut config = pod.config(&id, &["sleep", "1000"]);
            let note = hook(&format!("echo stopped >> {}/order", pod.folder.display()));
            let mut hooks = Hooks { poststop: vec![note], ..Hooks::default() };
            hooks.lists_mut()[at].insert(0, hook("echo the reason >&2; exit 3"));
            config.hooks = Some(hooks);
            let named = |said: &str| {
                for word in [name, "/bin/sh", "exit status: 3", "the reason"] {
                    assert!(said.contains(word), "{name}: {said}");
                }
            };
            let mut events = pod.subscribe();
            let created = pod.create(&id, &config, |_| {});
            match name {
                "prestart" | "createRuntime" | "createContainer" => named(&refused(created)),
                "startContainer" | "poststart" => {
                    named(&refused(pod.call(&Request::Start { id: id.clone() })));
                    let record = ShimPod::wait(&mut events, &id);
                    assert_eq!(record.exit_code, 128);
                    named(&record.message.unwrap());
                }
                _ => assert!(matches!(created, Reply::Created { .. }), "{created:?}"),
            }
            assert!(matches!(pod.call(&Request::Delete { id: id.clone() }), Reply::Done));
            assert_eq!(order(pod), ["stopped"], "{name}");
            assert!(!bundle(pod, &id).join("poststop").exists());
        }
        let log = std::fs::read_to_string(pod.folder.join("shim.log")).unwrap();
        assert!(log.contains("poststop hook 1 (/bin/sh)") && log.contains("the reason"), "{log}");
    });
}

#[test]
fn a_hook_that_hangs_is_ended_by_its_limit_and_by_the_end_of_its_container() {
    with_pod("hooks-hang", |pod| {
        let file = pod.folder.join("pid");
        let slow = |limit: i64| Hook {
            timeout: Some(limit),
            ..hook(&format!("read pid rest < /proc/self/stat; echo $pid > {}; exec sleep 1000", file.display()))
        };
        let gone = || {
            let pid = std::fs::read_to_string(&file).unwrap();
            std::fs::remove_file(&file).unwrap();
            until("the hook is gone", || (!Path::new("/proc").join(pid.trim()).exists()).then_some(()));
        };
        let mut config = pod.config("c1", &["sleep", "1000"]);
        for kind in 0..3 {
            let mut hooks = Hooks::default();
            hooks.lists_mut()[kind].push(slow(1));
            config.hooks = Some(hooks);
            let said = refused(pod.create("c1", &config, |_| {}));
            assert!(said.contains("within 1 s"), "{said}");
            gone();
        }
        // Others are served meanwhile, and the container may go at any time.
        let mut config = pod.config("c2", &["sleep", "1000"]);
        config.hooks = Some(Hooks { create_runtime: vec![slow(1000)], ..Hooks::default() });
        std::thread::scope(|scope| {
            let creation = scope.spawn(|| refused(pod.create("c2", &config, |_| {})));
            until("the hook runs", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')));
            assert!(matches!(pod.call(&Request::List), Reply::Listing { .. }));
            assert!(matches!(pod.call(&Request::Delete { id: "c2".into() }), Reply::Done));
            creation.join().unwrap();
        });
        gone();
        let mut config = pod.config("c3", &["sleep", "1000"]);
        config.hooks = Some(Hooks { poststart: vec![slow(1000)], ..Hooks::default() });
        assert!(matches!(pod.create("c3", &config, |_| {}), Reply::Created { .. }));
        std::thread::scope(|scope| {
            let start = scope.spawn(|| refused(pod.call(&Request::Start { id: "c3".into() })));
            until("the hook runs", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')));
            assert!(matches!(pod.call(&Request::Delete { id: "c3".into() }), Reply::Done));
            start.join().unwrap();
        });
        gone();
    });
}

#[test]
fn hooks_of_the_end_run_once_however_the_end_comes() {
    with_pod("hooks-end", |pod| {
        for id in ["c1", "c2"] {
            pod.start_container(id, &noting(pod, id, &["sleep", "1000"]), |_| {});
        }
        pod.shut_down();
        assert_eq!(order(pod).iter().filter(|line| line.starts_with("poststop")).count(), 2);
    });
    with_pod("hooks-dead", |pod| {
        pod.start_container("c1", &noting(pod, "c1", &["sleep", "1000"]), |_| {});
        let state: Value = serde_json::from_slice(&std::fs::read(pod.folder.join("state.json")).unwrap()).unwrap();
        let shim = state["shimPid"].as_i64().unwrap() as i32;
        let began = std::time::Instant::now();
        orlop_kernel::process::kill(shim, 9).unwrap();
        until("the shim is gone", || (!Path::new(&format!("/proc/{shim}")).exists()).then_some(()));
        for _ in 0..2 {
            sandbox::clean_up(&pod.folder).unwrap();
            assert_eq!(order(pod)[4..], ["poststop b"]);
        }
        assert!(began.elapsed() < DEADLINE);
        pod.ended = true;
    });
}

#[test]
fn the_hook_inside_has_the_rights_of_the_container() {
    with_pod("hooks-inside", |pod| {
        let mut config = pod.config("c1", &["cat", "/tmp/inside"]);
        config.process.user.uid = 1000;
        let script =
            "umask 0; mkdir -p /tmp; (id -u; ls /proc/self/fd | wc -l; grep CapEff /proc/self/status) > /tmp/inside";
        config.hooks = Some(Hooks { start_container: vec![hook(script)], ..Hooks::default() });
        std::fs::create_dir_all(pod.layer.join("tmp")).unwrap();
        std::fs::set_permissions(pod.layer.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        let (code, log) = pod.run("c1", &config);
        let lines: Vec<&str> = log.lines().collect();
        // Three streams and the folder that ls reads.
        assert_eq!((code, lines[0], lines[1].trim()), (0, "1000", "4"), "{log}");
        assert!(lines[2].ends_with("0000000000000000"), "{log}");
    });
}
