//! AppArmor profiles of containers: the runtime's own, one of the machine's, none. On a kernel without AppArmor, what is
//! said to those who ask for it.

use std::process::Command;

use orlop_kernel::lsm;
use orlop_tests::cri::{start, write};
use orlop_tests::world::{Daemon, World, read, refuse, run, until};
use serde_json::{Value, json};

/// The profile of those who name none.
const OWN: &str = "orlop-default";
/// Tries what the profile denies and what it doesn't, as an administrator whose capabilities allow all of it.
const SCRIPT: &str = "\
read label < /proc/self/attr/current; echo label $label
try() { what=$1; shift; if \"$@\" 2>/dev/null; then echo $what yes; else echo $what no; fi; }
same() { value=$(cat $1) && echo $value > $1; }
try mount mount -t tmpfs none /mnt
try vm same /proc/sys/vm/swappiness
try kernel same /proc/sys/kernel/panic_on_oops
try shm same /proc/sys/kernel/shmmni
try own same /proc/self/oom_score_adj
try firmware ls /sys/firmware/acpi
try write sh -c 'echo x > /mnt/file'
sleep 100 & try signal kill $!";

/// A world with a CRI server, an image and a pod in which containers can be made.
struct Pod {
    /// Ends first: the world takes down what is left of the pod, which it can't beside a server.
    _daemon: Daemon,
    world: World,
    file: String,
    id: String,
}

impl Pod {
    fn start() -> Pod {
        let (world, daemon) = start();
        let file = write(
            &world,
            "pod",
            &json!({
                "metadata": {"name": "pod", "namespace": "default", "uid": "u", "attempt": 0},
                "log_directory": world.folder().join("logs"),
                "linux": {"security_context": {"privileged": true}},
            }),
        );
        let id = read(world.crictl().args(["runp", &file]));
        Pod { _daemon: daemon, world, file, id }
    }

    /// The file that describes a container with this security context.
    fn container(&self, name: &str, mut security: Value, args: &[&str]) -> String {
        security["capabilities"] = json!({"add_capabilities": ["ALL"]});
        write(
            &self.world,
            name,
            &json!({
                "metadata": {"name": name},
                "image": {"image": "localhost/test:1"},
                "command": args,
                "log_path": format!("{name}.log"),
                "mounts": [{"container_path": "/mnt", "host_path": self.world.folder().join("mnt")}],
                "linux": {"security_context": security},
            }),
        )
    }

    /// Runs the script in a container and returns what it said.
    fn script(&self, name: &str, security: Value) -> String {
        let file = self.container(name, security, &["sh", "-c", SCRIPT]);
        let id = read(self.world.crictl().args(["create", &self.id, &file, &self.file]));
        run(self.world.crictl().args(["start", &id]));
        until("the script has ended", || {
            let status: Value = serde_json::from_str(&read(self.world.crictl().args(["inspect", &id]))).unwrap();
            (status["status"]["state"] == "CONTAINER_EXITED").then_some(())
        });
        read(self.world.crictl().args(["logs", &id]))
    }

    /// What is said when a container is refused.
    fn refused(&self, name: &str, security: Value) -> String {
        let file = self.container(name, security, &["true"]);
        refuse(self.world.crictl().args(["create", &self.id, &file, &self.file]))
    }
}

/// What the field asks for, by the numbers of the CRI: 0 is the runtime's own, 1 none, 2 one of the machine's.
fn field(kind: u32, name: &str) -> Value {
    json!({"apparmor": {"profile_type": kind, "localhost_ref": name}})
}

/// What the deprecated text asks for.
fn text(text: &str) -> Value {
    json!({"apparmor_profile": text})
}

#[test]
fn containers_run_under_the_profile_that_they_ask_for() {
    let pod = Pod::start();
    if !lsm::has_apparmor() {
        for (name, security) in [("field", field(0, "")), ("text", text("runtime/default"))] {
            let said = pod.refused(name, security);
            assert!(said.contains("AppArmor is not enabled on this node"), "{said}");
        }
        let said = pod.script("silent", json!({}));
        assert!(said.contains("mount yes"), "{said}");
        return;
    }
    let confined = format!("label {OWN} (enforce)\nmount no\nvm no\nkernel no\nshm yes\nown yes\nfirmware no\n");
    for (name, security) in [("silent", json!({})), ("default", field(0, "")), ("old-default", text("runtime/default"))]
    {
        let said = pod.script(name, security);
        assert_eq!(said, format!("{confined}write yes\nsignal yes"), "{name}");
    }
    for (name, security) in [
        ("unconfined", field(1, "")),
        ("old-unconfined", text("unconfined")),
        ("privileged", json!({"privileged": true})),
    ] {
        let said = pod.script(name, security);
        assert!(said.starts_with("label unconfined\nmount yes\nvm yes\nkernel yes\nshm yes\n"), "{name}: {said}");
    }
    named(&pod);
    entered(&pod);
    unloaded(&pod, &confined);
}

/// A profile of the machine's own.
fn named(pod: &Pod) {
    let name = format!("orlop-test-{}", std::process::id());
    let profile = pod.world.folder().join("profile");
    let rules = "capability, file, mount, umount, signal, deny /mnt/** w,";
    std::fs::write(&profile, format!("profile {name} flags=(attach_disconnected) {{ {rules} }}")).unwrap();
    run(Command::new("apparmor_parser").args(["--replace", "--skip-cache"]).arg(&profile));
    for (container, security) in [("named", field(2, &name)), ("old-named", text(&format!("localhost/{name}")))] {
        let said = pod.script(container, security);
        assert!(said.starts_with(&format!("label {name} (enforce)\nmount ")), "{said}");
        assert!(said.contains("vm yes") && said.contains("write no"), "{said}");
    }
    run(Command::new("apparmor_parser").args(["--remove", "--skip-cache"]).arg(&profile));
    let said = pod.refused("gone", field(2, &name));
    assert!(said.contains(&name) && said.contains("is not loaded on this node"), "{said}");
}

/// What enters a container is under its profile, and what stops it isn't hindered by that.
fn entered(pod: &Pod) {
    let file = pod.container("long", json!({}), &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"]);
    let id = read(pod.world.crictl().args(["create", &pod.id, &file, &pod.file]));
    run(pod.world.crictl().args(["start", &id]));
    for way in [&["exec", "-s"][..], &["exec"]] {
        let label = read(pod.world.crictl().args(way).args([&id, "cat", "/proc/self/attr/current"]));
        assert_eq!(label, format!("{OWN} (enforce)"));
    }
    run(pod.world.crictl().args(["stop", "--timeout", "50", &id]));
    let status: Value = serde_json::from_str(&read(pod.world.crictl().args(["inspect", &id]))).unwrap();
    assert_eq!(status["status"]["exitCode"], 3, "it heard the signal");
}

/// Somebody takes the runtime's profile away, as `aa-remove-unknown` does.
fn unloaded(pod: &Pod, confined: &str) {
    std::fs::write("/sys/kernel/security/apparmor/.remove", OWN).expect("remove a profile");
    assert!(!lsm::has_apparmor_profile(OWN).unwrap());
    let said = pod.script("again", json!({}));
    assert!(said.starts_with(confined), "{said}");
}
