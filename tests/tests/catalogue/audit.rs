//! What a pod finds that looks at its own walls, in each kind of process: case 18.

use orlop_tests::case::container;
use orlop_tests::world::until;
use serde_json::json;

use crate::agent::with_node;

/// Says how it is confined, a fact a line.
const AUDIT: &str = include_str!("audit.c");

/// What it has to say, in this order.
const EXPECTED: &str = "\
CapInh 0000000000000000
CapPrm 00000000a80425fb
CapEff 00000000a80425fb
CapBnd 00000000a80425fb
CapAmb 0000000000000000
NoNewPrivs 0
Seccomp 2
threads with a filter 2 of 2
unshare user EPERM
unshare mount EPERM
clone user EPERM
clone3 ENOSYS
mount EPERM
umount EPERM
open_tree EPERM
move_mount EPERM
fsopen EPERM
fsmount EPERM
pivot_root EPERM
setns EPERM
keyctl EPERM
add_key EPERM
bpf EPERM
perf_event_open EPERM
io_uring_setup EPERM
userfaultfd EPERM
open_by_handle_at EPERM
kexec_load EPERM
init_module EPERM
finit_module EPERM
delete_module EPERM
reboot EPERM
swapon EPERM
settimeofday EPERM
personality EPERM
ptrace ok
AF_ALG EPERM
AF_VSOCK EPERM
AF_INET ok
AF_PACKET ok
/proc/kcore hidden
/proc/keys hidden
/proc/timer_list hidden
/proc/interrupts hidden
/proc/acpi hidden
/proc/scsi hidden
/sys/firmware hidden
/sys/devices/virtual/powercap hidden
/proc/sys/kernel/core_pattern read-only
/proc/sysrq-trigger read-only
/proc/bus read-only
/proc/fs read-only
/proc/irq read-only
/sys read-only
/sys/fs/cgroup read-only
/dev/null opens
/dev/zero opens
/dev/full opens
/dev/random opens
/dev/urandom opens
/dev/ptmx opens
block 8:0 EPERM
char 1:1 EPERM
char 1:11 EPERM
char 10:229 EPERM
char 10:200 EPERM
open files 1024 524288
";

#[test]
fn case_18_a_pod_that_looks_at_its_own_walls() {
    let images = |images: &mut orlop_tests::hostile_image::HostileImages| {
        images.compile(AUDIT, "bin/audit");
        images.add("localhost/audit:1", &json!({"Env": ["PATH=/bin"]}));
    };
    with_node("case-18", images, |case| {
        let image = json!({"image": "localhost/audit:1", "imagePullPolicy": "Never"});
        let with = |name: &str, command: serde_json::Value| {
            let mut one = image.clone();
            one["name"] = name.into();
            one["command"] = command;
            one
        };
        case.make_pod(
            "audited",
            json!({
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                "initContainers": [with("init", json!(["audit"]))],
                "containers": [with("app", json!(["sh", "-c", "audit; sleep 1000"]))],
            }),
        );
        case.until_ready("audited");
        let compare = |what: &str, said: &str| {
            let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
            let mut expected: Vec<&str> = EXPECTED.lines().collect();
            // A daemon that may not raise limits hands on the hard one that it has itself.
            let (_, own) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
            let lower = format!("open files 1024 {}", own.min(524_288));
            if lines.last() == Some(&lower.as_str()) {
                expected.pop();
                expected.push(&lower);
            }
            assert_eq!(lines, expected, "{what}");
        };
        compare("an init container", &case.log("audited", "init"));
        until("it has said all", || case.log("audited", "app").contains("open files").then_some(()));
        compare("a container", &case.log("audited", "app"));
        compare("an exec", &case.say(&["exec", "audited", "-c", "app", "--", "audit"]));
        let patch = json!({"spec": {"ephemeralContainers": [with("debug", json!(["audit"]))]}});
        let path = format!("{}/ephemeralcontainers", case.path("pods", "audited"));
        case.cluster.api.must("PATCH", &path, Some(&patch));
        case.until_pod("audited", "the ephemeral container has ended", |pod| {
            container(pod, "debug")["state"]["terminated"].is_object()
        });
        compare("an ephemeral container", &case.log("audited", "debug"));
    });
}
