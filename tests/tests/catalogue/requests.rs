//! Images and requests whose words are paths, names and settings of the machine: cases 12, 20, 22.

use serde_json::{Value, json};

use crate::server::{Server, said};

#[test]
fn case_12_paths_in_an_images_configuration() {
    let outside = tempfile::tempdir().unwrap();
    let script = outside.path().join("canary");
    std::fs::write(&script, "#!/bin/sh\necho CANARY\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let places = ["/proc/self/fd/7", "/proc/self/fd/3/..", "/proc/1/root/..", "/dev/..", "/../../etc", "relative/.."];
    let server = Server::start(|images| {
        std::os::unix::fs::symlink(&script, images.root().join("entry")).unwrap();
        images.add("localhost/entry:1", &json!({"Entrypoint": ["/entry"], "Env": ["PATH=/bin"]}));
        for (number, place) in places.iter().enumerate() {
            let config = json!({"WorkingDir": place, "Env": ["PATH=/bin"]});
            images.add(&format!("localhost/work-{number}:1"), &config);
        }
        let volumes = json!({"/../../etc": {}, "/..": {}, "../x": {}, outside.path().to_str().unwrap(): {}});
        images.add("localhost/volumes:1", &json!({"Volumes": volumes, "Env": ["PATH=/bin"]}));
    });
    let pod = server.run_pod("paths");
    let error = server.begin(&pod, "entry", &json!({"image": {"image": "localhost/entry:1"}})).unwrap_err();
    assert!(error.contains("/entry"), "{error}");
    // The folder is where the root's `etc` can be seen by its parent, or nothing starts.
    let canary = script.display().to_string();
    let look = format!("pwd; cat {canary} 2>&1; cat $PWD/{canary} ../../../../../../../{canary} 2>&1; ls -a");
    for (number, place) in places.iter().enumerate() {
        let image = json!({"image": {"image": format!("localhost/work-{number}:1")}, "command": ["sh", "-c", look]});
        match server.finish(&pod, &format!("work-{number}"), &image) {
            Ok((_, log)) => {
                assert!(log.starts_with('/') && !log.contains("unreachable"), "{place}: {log}");
                assert!(!log.contains("CANARY"), "{place}: {log}");
            }
            Err(error) => assert!(error.contains("working"), "{place}: {error}"),
        }
    }
    let volumes = json!({"image": {"image": "localhost/volumes:1"}, "command": ["sh", "-c", look]});
    match server.finish(&pod, "volumes", &volumes) {
        Ok((_, log)) => assert!(!log.contains("CANARY"), "{log}"),
        Err(error) => assert!(error.contains("VOLUME"), "{error}"),
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    server.end();
}

#[test]
fn case_20_sysctls_of_the_machine() {
    let server = Server::start(|_| {});
    let network = json!({"security_context": {"namespace_options": {"network": 2}}});
    let ipc = json!({"security_context": {"namespace_options": {"ipc": 2}}});
    let refused = [
        ("kernel.core_pattern", "|/tmp/x", json!({})),
        ("kernel/core_pattern", "|/tmp/x", json!({})),
        ("kernel.modprobe", "/tmp/x", json!({})),
        ("vm.swappiness", "1", json!({})),
        ("net/../kernel/core_pattern", "|/tmp/x", json!({})),
        ("net.ipv4//core", "1", json!({})),
        ("kernel.shm_rmid_forced", "1\n0", json!({})),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", json!({})),
        ("net.ipv4.ip_forward", "0\nkernel.core_pattern=|/x", json!({})),
        ("net.ipv4.ip_unprivileged_port_start", "1", network.clone()),
        ("net.core.somaxconn", "1", network),
        ("kernel.shm_rmid_forced", "1", ipc.clone()),
        ("fs.mqueue.msg_max", "1", ipc),
        ("", "1", json!({})),
    ];
    for (number, (name, value, context)) in refused.iter().enumerate() {
        let mut linux = json!({"sysctls": {*name: value}});
        linux.as_object_mut().unwrap().extend(context.as_object().unwrap().clone());
        let pod = server.pod_file(&format!("refused-{number}"), linux);
        let error = said(server.world.crictl().args(["runp", &pod])).unwrap_err();
        assert!(error.contains("sysctl"), "{name} {value:?}: {error}");
        server.invariant.check();
    }
    let fine = server.pod_file("fine", json!({"sysctls": {"kernel.shm_rmid_forced": "1"}}));
    said(server.world.crictl().args(["runp", &fine])).unwrap();
    server.end();
}

#[test]
fn case_22_seccomp_profiles_that_are_none() {
    let server = Server::start(|_| {});
    let folder = server.world.folder().join("profiles");
    std::fs::create_dir_all(folder.join("folder")).unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    file("empty", "");
    file("nothing", "{}");
    file("action", r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#);
    file(
        "operator",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    file(
        "names",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["no_such_call", "mkdir", "mkdirat"],
        "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    std::fs::File::create(folder.join("large")).unwrap().set_len(64 << 20).unwrap();
    nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let pod = server.run_pod("seccomp");
    let with = |profile: String| -> Value {
        json!({"command": ["sh", "-c", "grep Seccomp: /proc/self/status; mkdir /made || echo refused"],
            "linux": {"security_context": {"namespace_options": {"pid": 1},
                "seccomp": {"profile_type": 2, "localhost_ref": profile}}}})
    };
    let refused = [
        String::new(),
        "../x".into(),
        "profiles/names".into(),
        format!("{}/../names", folder.display()),
        at("missing"),
        at("folder"),
        at("pipe"),
        "/dev/zero".into(),
        at("large"),
        at("empty"),
        at("nothing"),
        at("action"),
        at("operator"),
    ];
    for (number, profile) in refused.into_iter().enumerate() {
        let began = std::time::Instant::now();
        let error = server.begin(&pod, &format!("refused-{number}"), &with(profile.clone())).unwrap_err();
        assert!(error.contains("seccomp"), "{profile:?}: {error}");
        assert!(began.elapsed().as_secs() < 5, "{profile:?}: {:?}", began.elapsed());
    }
    let (_, log) = server.finish(&pod, "names", &with(at("names"))).unwrap();
    assert!(log.contains("Seccomp:\t2") && log.contains("refused"), "{log}");

    server.end();
}
