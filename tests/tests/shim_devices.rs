//! Device nodes of a container: where they may be, whose they are, how many there may be.

use std::os::unix::fs::symlink;
use std::time::Instant;

use orlop_container::config::{Device, Mount};
use orlop_container::protocol::Reply;
use orlop_kernel::cgroup::DeviceRule;
use orlop_tests::shim::{ShimPod, with_pod};

fn device(path: &str, kind: &str, major: u32, minor: u32) -> Device {
    Device { path: path.into(), kind: kind.into(), major, minor, ..Device::default() }
}

fn refused(reply: Reply) -> String {
    match reply {
        Reply::Failed { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_of_all_kinds_are_made_with_their_owners_and_modes() {
    with_pod("nodes", |pod| {
        let mut config = pod.config("c1", &["sleep", "1000"]);
        let own = |device: Device, mode: u32, uid: u32, gid: u32| Device {
            file_mode: Some(mode),
            uid: Some(uid),
            gid: Some(gid),
            ..device
        };
        config.linux.devices.extend([
            own(device("/dev/snd/by-path/zero", "c", 1, 5), 0o20_640, 1000, 1001),
            own(device("/dev/disk0", "b", 7, 0), 0o660, 0, 6),
            own(device("/dev/pipe", "p", 0, 0), 0o622, 3, 0),
            device("/dev/mapper/plain", "u", 1, 7),
            device("/opt/vendor/device", "c", 1, 5),
            // Twice the same is once.
            device("/dev/null", "c", 1, 3),
        ]);
        pod.start_container("c1", &config, |_| {});
        let stat = |path: &str| {
            let (code, text) = pod.exec("c1", &["stat", "-c", "%F %a %u:%g %t:%T", path]);
            assert_eq!(code, 0, "{path}: {text}");
            text.trim_end().to_string()
        };
        assert_eq!(stat("/dev/snd/by-path/zero"), "character special file 640 1000:1001 1:5");
        assert_eq!(stat("/dev/disk0"), "block special file 660 0:6 7:0");
        assert_eq!(stat("/dev/pipe"), "fifo 622 3:0 0:0");
        assert_eq!(stat("/dev/mapper/plain"), "character special file 666 0:0 1:7");
        assert_eq!(stat("/opt/vendor/device"), "character special file 666 0:0 1:5");
        assert_eq!(stat("/dev/snd/by-path").split_whitespace().nth(1), Some("755"));
        assert_eq!(pod.exec("c1", &["head", "-c", "2", "/opt/vendor/device"]), (0, "\0\0".into()));
    });
}

#[test]
fn nodes_never_lie_outside_or_on_anything_mounted() {
    with_pod("outside", |pod| {
        let (volume, outside) = (pod.folder.join("volume"), pod.folder.join("outside"));
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        symlink(&outside, pod.layer.join("absolute")).unwrap();
        symlink("../../../../../../..", pod.layer.join("climbing")).unwrap();
        let with = |id: &str, device: Device| {
            let mut config = pod.config(id, &["ls", "/volume", "/dev/shm"]);
            config.mounts.push(Mount {
                destination: "/volume".into(),
                kind: "bind".into(),
                source: volume.clone(),
                options: vec!["rbind".into()],
                ..Mount::default()
            });
            config.linux.devices.push(device);
            config
        };
        for (number, (path, words)) in [
            ("/volume/x", "a mount of its own"),
            ("/volume/deep/x", "a mount of its own"),
            ("/dev/shm/x", "a mount of its own"),
            ("/dev/../x", "without .."),
            ("/etc/passwd", "something else has that name"),
            ("/dev/null", "something else has that name"),
            ("/etc/passwd/x", "/etc/passwd/x"),
            ("relative", "absolute"),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("c{number}");
            let said = refused(pod.create(&id, &with(&id, device(path, "c", 1, 5)), |_| {}));
            assert!(said.contains(words) && said.contains(path), "{path}: {said}");
        }
        // Links are followed inside of the root.
        for (id, path) in [("l1", "/absolute/a"), ("l2", "/climbing/b")] {
            assert_eq!(pod.run(id, &with(id, device(path, "c", 1, 5))).0, 0);
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "something was made on the volume");
        assert!(!std::path::Path::new("/b").exists());
    });
}

#[test]
fn a_privileged_container_gets_hundreds_of_devices_fast() {
    with_pod("hundreds", |pod| {
        let many = |id: &str| {
            let mut many = pod.config(id, &["sh", "-c", "ls /dev/many /dev/few | wc -l; head -c 1 /dev/zero | wc -c"]);
            many.linux.devices.extend((0..500).map(|number| device(&format!("/dev/many/{number}"), "c", 4, number)));
            many.linux.devices.extend((0..500).map(|number| device(&format!("/dev/few{number}"), "b", 7, number)));
            many.linux.devices.push(device("/dev/few/x", "c", 1, 9));
            let allow = DeviceRule { allow: true, kind: Some("a".into()), ..DeviceRule::default() };
            many.linux.resources.devices = vec![allow];
            many
        };
        let time = |id: &str, config| {
            let began = Instant::now();
            assert!(matches!(pod.create(id, &config, |_| {}), Reply::Created { .. }));
            began.elapsed()
        };
        // The best of some: what else the machine does is not what is looked at.
        let without = ["p1", "p2", "p3"].map(|id| time(id, pod.config(id, &["true"]))).into_iter().min().unwrap();
        let with = ["c1", "c2", "c3"].map(|id| time(id, many(id))).into_iter().min().unwrap();
        println!("without: {without:?}, with 1000 devices: {with:?}");
        assert!(with < without + std::time::Duration::from_millis(250), "{with:?} instead of {without:?}");
        let mut events = pod.subscribe();
        assert!(matches!(
            pod.call(&orlop_container::protocol::Request::Start { id: "c2".into() }),
            Reply::Started { .. }
        ));
        assert_eq!(ShimPod::wait(&mut events, "c2").exit_code, 0);
        assert_eq!(pod.log("c2"), "504\n1");
    });
}

#[test]
fn only_what_the_rules_allow_can_be_opened() {
    with_pod("rules", |pod| {
        let rule = |allow, kind: &str, minor: Option<i64>, access: &str| DeviceRule {
            allow,
            kind: Some(kind.into()),
            major: minor.map(|_| 1),
            minor,
            access: Some(access.into()),
        };
        let mut config = pod.config("c1", &["sleep", "1000"]);
        config.linux.resources.devices =
            vec![rule(false, "a", None, "rwm"), rule(true, "c", Some(3), "rwm"), rule(true, "u", Some(5), "r")];
        // Nodes are made inside of the cgroup; to make one is not to open it.
        config.linux.resources.devices.push(rule(true, "c", None, "m"));
        config.linux.devices.push(device("/dev/mem2", "c", 1, 1));
        pod.start_container("c1", &config, |_| {});
        let works = |line: &str| pod.exec("c1", &["sh", "-c", line]).0 == 0;
        assert!(works("echo x > /dev/null") && works("head -c 1 /dev/zero"));
        for line in [
            "echo x > /dev/zero",
            "head -c 1 /dev/full",
            "head -c 1 /dev/mem2",
            "mknod /tmp/full c 1 7 && head -c 1 /tmp/full",
        ] {
            assert!(!works(line), "{line}");
        }
        let mut wrong = pod.config("c2", &["true"]);
        wrong.linux.resources.devices = vec![rule(true, "x", None, "rwm")];
        let said = refused(pod.create("c2", &wrong, |_| {}));
        assert!(said.contains("\"x\" is not a, b or c"), "{said}");
    });
}
