//! `orlop doctor` on a machine that has everything, and on ones that lack something; and starts that can't go well.

use std::process::{Command, Output};

use orlop_tests::place::{debian, programs};
use orlop_tests::world::{Daemon, World, refuse, until};

/// Runs the doctor; `before` is typed in front of it.
fn doctor(world: &World, before: &[&str]) -> (bool, String) {
    let mut command: Command = match before {
        [] => world.orlop(),
        [program, rest @ ..] => {
            let mut command = world.command(program);
            command.args(rest).arg(programs().join("orlop")).arg("--root").arg(&world.root);
            command
        }
    };
    let output: Output = command.arg("doctor").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of checks that failed.
fn failed(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("FAIL")).collect()
}

#[test]
fn a_machine_with_everything_is_well_and_unchanged() {
    let world = World::new();
    let count = world.count();
    let (well, text) = doctor(&world, &[]);
    assert!(well && failed(&text).is_empty(), "{text}");
    assert!(text.contains("this machine can run pods"), "{text}");
    assert_eq!(world.count(), count);
    assert_eq!(std::fs::read_dir(&world.root).unwrap().count(), 0, "nothing is written");
}

#[test]
fn missing_rights_are_named() {
    let world = World::new();
    let (well, text) = doctor(&world, &["setpriv", "--bounding-set", "-net_admin,-sys_admin"]);
    let failed = failed(&text);
    assert!(!well && failed[0].contains("root without CAP_SYS_ADMIN, CAP_NET_ADMIN"), "{text}");
    for check in ["mounts", "overlayfs", "network", "nftables"] {
        assert!(failed.iter().any(|line| line.contains(check)), "{check}: {text}");
    }
}

#[test]
fn a_file_system_that_carries_no_overlay_is_named_with_the_way_out() {
    let world = World::new();
    let mut mount = world.command("sh");
    let folder = world.folder().display().to_string();
    let script = format!(
        "cd {folder} && mkdir lower upper work && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none {} ",
        world.root.display()
    );
    assert!(mount.args(["-c", &script]).status().unwrap().success());
    let (well, text) = doctor(&world, &[]);
    assert!(!well, "{text}");
    assert_eq!(failed(&text).len(), 1, "{text}");
    assert!(failed(&text)[0].contains("overlayfs") && text.contains("ext4, xfs or btrfs"), "{text}");
}

#[test]
fn cgroups_that_are_not_mounted_are_named() {
    let world = World::new();
    let hide = "mount --make-rprivate / && umount -R /sys/fs/cgroup && exec \"$@\"";
    let (well, text) = doctor(&world, &["unshare", "-m", "sh", "-c", hide, "sh"]);
    assert!(!well, "{text}");
    assert!(failed(&text)[0].contains("cgroups") && text.contains("mount -t cgroup2"), "{text}");
}

#[test]
fn a_port_that_is_taken_is_named_by_the_doctor_and_by_the_start() {
    let world = World::new();
    let busybox = debian("busybox", "busybox-static");
    // The first start chooses the ports.
    let mut command = world.orlop();
    command.args(["api", "--node-name", "node-1"]);
    let api = Daemon::start(command, world.folder().join("api.log"));
    until("the API is ready", || api.log().contains("the API is ready").then_some(()));
    drop(api);
    let record = std::fs::read(world.root.join("state/instance.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let port = record["apiPort"].to_string();
    let mut listen = world.command(busybox);
    listen.args(["nc", "-l", "-p", &port]);
    let _listener = Daemon::start(listen, world.folder().join("nc.log"));
    let number = port.parse().unwrap();
    until("somebody listens", || orlop_tests::images::listens(world.pid(), number).then_some(()));
    let (well, text) = doctor(&world, &[]);
    assert!(!well && failed(&text)[0].contains("ports") && failed(&text)[0].contains(&port), "{text}");
    let said = refuse(world.orlop().arg("up"));
    assert!(said.contains(&port) && said.contains("in use"), "{said}");
}

#[test]
fn damaged_state_is_named_with_the_way_out_and_left_alone() {
    let world = World::new();
    let state = world.root.join("state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("instance.json"), "{\"version\": 1,").unwrap();
    let said = refuse(world.orlop().arg("up"));
    assert!(said.contains("instance.json is damaged") && said.contains("move it away"), "{said}");
    std::fs::remove_file(state.join("instance.json")).unwrap();
    // The objects of the API: whatever lies there is not thrown away.
    let mut command = world.orlop();
    command.args(["api", "--node-name", "node-1"]);
    let api = Daemon::start(command, world.folder().join("api.log"));
    until("the API is ready", || api.log().contains("the API is ready").then_some(()));
    drop(api);
    let objects = state.join("api/objects.redb");
    let whole = std::fs::read(&objects).unwrap();
    std::fs::write(&objects, b"this is no database").unwrap();
    let said = refuse(world.orlop().arg("up"));
    assert!(said.contains("objects.redb is damaged") && said.contains("backup"), "{said}");
    assert_eq!(std::fs::read(&objects).unwrap(), b"this is no database");
    let cut = &whole[..whole.len() / 2];
    std::fs::write(&objects, cut).unwrap();
    let said = refuse(world.orlop().arg("up"));
    assert!(said.contains("objects.redb is damaged"), "{said}");
    std::fs::write(&objects, whole).unwrap();
    let mut command = world.orlop();
    command.args(["api", "--node-name", "node-1"]);
    let api = Daemon::start(command, world.folder().join("again.log"));
    until("the API is ready again", || api.log().contains("the API is ready").then_some(()));
}

#[test]
fn a_mistake_in_the_configuration_is_named() {
    let world = World::new();
    let file = world.root.join("etc/cri.toml.d/10-mine.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "[images]\npined = []\n").unwrap();
    let (well, text) = doctor(&world, &[]);
    let failed = failed(&text);
    assert!(!well && failed.len() == 1, "{text}");
    assert!(failed[0].contains("runtime") && failed[0].contains("10-mine.toml"), "{text}");
    assert!(text.contains("pined"), "{text}");
}
