//! A machine with a node goes down and comes back: the real logind waits until the pods have ended, group after group.
//!
//! It reboots what it runs on and is run before that and after: `cargo xtask guest test reboot`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orlop_tests::api::Api;
use orlop_tests::case::{condition, container};
use orlop_tests::place::{foreign, programs};
use orlop_tests::world::{Daemon, load_image, run, until, until_within};
use serde_json::{Value, json};

/// The test's own folder; it is there after the reboot.
const FOLDER: &str = "/var/lib/orlop-reboot";
/// The unit that the guest boots into, by which it is known.
const GUEST: &str = "systemd.unit=orlop-guest.service";
/// The node's unit.
const NODE: &str = "orlop-node.service";
/// A unit that says when the machine stops its services.
const MARK: &str = "orlop-mark.service";
/// Pods have a minute, of which critical ones have 20 s; the last statuses have 5 s more.
const PERIODS: &str = "shutdownGracePeriod: 60s\nshutdownGracePeriodCriticalPods: 20s\n";
const NEEDED: &str = "t 65000000";
/// How long logind waits unless it is told to wait longer.
const USUAL: &str = "t 5000000";
const USUAL_SECONDS: f64 = 5.0;
/// How long a pod takes to end: two groups take longer than logind usually waits.
const END_SECONDS: u32 = 6;
/// How long the node may take to be ready in an emulated machine.
const READY_TIME: Duration = Duration::from_secs(120);
/// Why a pod has ended.
const ENDED: &str = "Pod was terminated in response to imminent node shutdown.";

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Ends the test on any machine that is more than a guest.
fn need_guest() {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap();
    assert!(line.contains(GUEST), "this test reboots the machine, and this is no guest: cargo xtask guest test reboot");
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
}

fn systemctl(arguments: &[&str]) {
    run(Command::new("systemctl").args(arguments));
}

/// What logind answers, when it does.
fn ask(verb: &str, name: &str) -> Option<Value> {
    let mut command = Command::new("busctl");
    command.args(["--json=short", verb, "org.freedesktop.login1", "/org/freedesktop/login1"]);
    let answer = command.args(["org.freedesktop.login1.Manager", name]).output().expect("run busctl");
    answer.status.success().then(|| serde_json::from_slice(&answer.stdout).expect("busctl prints JSON"))
}

/// A property of logind: its type and its value.
fn property(name: &str) -> String {
    let value = ask("get-property", name).unwrap_or_else(|| panic!("logind does not tell its {name}"));
    format!("{} {}", value["type"].as_str().unwrap(), value["data"])
}

/// Who holds locks of logind: what, who, why and mode of each.
fn locks() -> Option<Vec<[String; 4]>> {
    let words = |lock: &Value| [0, 1, 2, 3].map(|at| lock[at].as_str().unwrap().to_string());
    Some(ask("call", "ListInhibitors")?["data"][0].as_array().unwrap().iter().map(words).collect())
}

fn until_locked(when: &str) {
    let want = [["shutdown", "orlop", "pods need time to end", "delay"].map(String::from)];
    until(&format!("the node alone holds a lock {when}"), || (locks()? == want).then_some(()));
}

fn orlop() -> Command {
    Command::new(file("programs/orlop"))
}

/// The node as a service of the machine, without a root of its own.
struct Node {
    api: Api,
    _proxy: Daemon,
}

impl Node {
    /// Starts it and waits until it is ready.
    fn start() -> Node {
        systemctl(&["start", NODE]);
        let kubeconfig = Path::new("/var/lib/orlop/admin.kubeconfig");
        until("the kubeconfig is there", || kubeconfig.exists().then_some(()));
        let socket = Path::new("/run/orlop-reboot.sock");
        let _ = std::fs::remove_file(socket);
        let mut proxy = Command::new(foreign("kubectl"));
        proxy.arg("--kubeconfig").arg(kubeconfig).arg("proxy").arg("--unix-socket").arg(socket);
        let node = Node { api: Api::new(socket), _proxy: Daemon::start(proxy, file("proxy.log")) };
        until_within(READY_TIME, "the node is ready", || (node.readiness()?.0 == "True").then_some(()));
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        until("the namespace has its service account", || node.api.find(account).map(drop));
        node
    }

    /// Status and message of the node's condition Ready, when the API answers.
    fn readiness(&self) -> Option<(String, String)> {
        let (_, nodes) = self.api.send("GET", "/api/v1/nodes", None).ok()?;
        let conditions = nodes["items"][0]["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
        Some((ready["status"].as_str()?.to_string(), ready["message"].as_str()?.to_string()))
    }

    fn until_readiness(&self, status: &str, message: &str) {
        until(&format!("the node's readiness is {status} ({message})"), || {
            let (is, why) = self.readiness()?;
            (is == status && why.contains(message)).then_some(())
        });
    }

    fn pod(&self, name: &str) -> Value {
        self.api.get(&format!("/api/v1/namespaces/default/pods/{name}"))
    }

    /// Runs a pod that says in the file of words when it begins and, by its last command, how it obeys.
    fn run_pod(&self, name: &str, class: &str, grace: u32, obey: &str) {
        let script = format!(
            "say() {{ read -r up rest < /proc/uptime; echo \"$up {name} $1\" >> /words/words; }}; \
             say up; {obey}; while :; do sleep 0.1; done"
        );
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "priorityClassName": class, "terminationGracePeriodSeconds": grace,
            "volumes": [{"name": "words", "hostPath": {"path": file("words")}}],
            "containers": [{
                "name": "c", "image": "localhost/test:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "words", "mountPath": "/words"}],
            }],
        }});
        self.api.must("POST", "/api/v1/namespaces/default/pods", Some(&pod));
        until(&format!("pod {name} is ready"), || (condition(&self.pod(name), "Ready") == "True").then_some(()));
        until(&format!("pod {name} has spoken"), || {
            words().iter().any(|(_, word)| *word == format!("{name} up")).then_some(())
        });
    }

    /// Sees that a pod has ended by a shutdown; the exit code of its container and when it ended.
    fn ended(&self, name: &str) -> (i64, String) {
        let pod = self.pod(name);
        let status = &pod["status"];
        assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Terminated")), "{status}");
        assert_eq!(status["message"], ENDED, "{status}");
        assert_eq!(condition(&pod, "DisruptionTarget"), "True", "{status}");
        let end = &container(&pod, "c")["state"]["terminated"];
        (end["exitCode"].as_i64().expect("an exit code"), end["finishedAt"].as_str().expect("a time").to_string())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(file("node.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the node's last words:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}

/// What was said by whom and how many seconds after the machine's start.
fn words() -> Vec<(f64, String)> {
    let text = std::fs::read_to_string(file("words/words")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (time, word) = line.split_once(' ').unwrap_or_else(|| panic!("half a word: {line:?}"));
            (time.parse().unwrap(), word.to_string())
        })
        .collect()
}

/// Takes its time to end, and says so.
fn obeys() -> String {
    format!("trap 'say told; sleep {END_SECONDS}; say done; exit 7' TERM")
}

/// Installs the programs and makes both services.
fn install() {
    for folder in ["programs", "words"] {
        std::fs::create_dir_all(file(folder)).unwrap();
    }
    for program in std::fs::read_dir(programs()).unwrap().flatten() {
        std::fs::copy(program.path(), file("programs").join(program.file_name())).unwrap();
    }
    std::fs::write(file("boot_id"), boot_id()).unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    std::fs::write(file("kubelet.yaml"), format!("{head}{PERIODS}")).unwrap();
    let node = format!(
        "[Service]\nExecStart={FOLDER}/programs/orlop up --kubelet-config {FOLDER}/kubelet.yaml\nKillMode=process\n\
         StandardOutput=append:{FOLDER}/node.log\nStandardError=inherit\n"
    );
    let mark = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n\
         ExecStop=/bin/sh -c 'read -r up rest < /proc/uptime; echo \"$$up machine stops\" >> {FOLDER}/words/words'\n"
    );
    for (unit, text) in [(NODE, node), (MARK, mark)] {
        std::fs::write(Path::new("/etc/systemd/system").join(unit), text).unwrap();
    }
    systemctl(&["daemon-reload"]);
    systemctl(&["start", MARK]);
}

/// The first run: up to a machine that goes down.
fn go_down() {
    install();
    assert_eq!((property("InhibitDelayMaxUSec"), locks()), (USUAL.into(), Some(vec![])));
    let node = Node::start();
    until_locked("once it is ready");
    assert_eq!(property("InhibitDelayMaxUSec"), NEEDED);
    let drop_in = std::fs::read_to_string("/etc/systemd/logind.conf.d/99-orlop.conf").unwrap();
    assert!(drop_in.contains("[Login]\nInhibitDelayMaxSec=65\n"), "{drop_in}");
    load_image(orlop, Path::new(FOLDER));

    systemctl(&["restart", "systemd-logind.service"]);
    until_locked("of a logind that was restarted");
    systemctl(&["restart", "dbus.service"]);
    until_locked("over a bus that was restarted");

    forget(&node);
    call_off(&node);
    node.run_pod("usual", "", 30, &obeys());
    node.run_pod("stubborn", "", 2, "trap '' TERM");
    node.run_pod("critical", "system-node-critical", 30, &obeys());
    assert_eq!(property("PreparingForShutdown"), "b false");
    systemctl(&["reboot"]);
    assert_eq!(property("PreparingForShutdown"), "b true");
    node.until_readiness("False", "node is shutting down");
}

/// A logind that is restarted while it waits has forgotten the reboot, and tells nobody: the node works on.
fn forget(node: &Node) {
    node.run_pod("first", "", 30, &obeys());
    systemctl(&["reboot"]);
    node.until_readiness("False", "node is shutting down");
    systemctl(&["restart", "systemd-logind.service"]);
    assert_eq!(property("PreparingForShutdown"), "b false");
    node.until_readiness("True", "");
    until_locked("of a logind that has forgotten a reboot");
}

/// A reboot that logind can't carry out once the pods have ended: it says so, and the node works on.
fn call_off(node: &Node) {
    let mask = Path::new("/run/systemd/system/reboot.target");
    node.run_pod("early", "", 30, &obeys());
    systemctl(&["reboot"]);
    node.until_readiness("False", "node is shutting down");
    std::os::unix::fs::symlink("/dev/null", mask).unwrap();
    systemctl(&["daemon-reload"]);
    assert_eq!(property("PreparingForShutdown"), "b true", "the reboot was to fail later");
    node.until_readiness("True", "");
    until_locked("after a shutdown that was called off");
    assert_eq!(node.ended("early").0, 7);
    std::fs::remove_file(mask).unwrap();
    systemctl(&["daemon-reload"]);
}

/// The second run, after the reboot.
fn come_back() {
    assert_ne!(boot_id(), std::fs::read_to_string(file("boot_id")).unwrap(), "this is the same boot");
    let spoken = words();
    println!("what pods and machine said:");
    spoken.iter().for_each(|(time, word)| println!("{time:8.2} {word}"));
    let after = spoken.iter().skip_while(|(_, word)| word != "critical up").skip(1);
    let (times, told): (Vec<f64>, Vec<&str>) = after.map(|(time, word)| (*time, word.as_str())).unzip();
    assert_eq!(told, ["usual told", "usual done", "critical told", "critical done", "machine stops"]);
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[4] - times[0] > USUAL_SECONDS, "logind has waited no longer than usual: {times:?}");
    let log = std::fs::read_to_string(file("node.log")).unwrap();
    for word in ["logind waits longer from now on", "all pods were told to end; the machine may go down left=0"] {
        assert!(log.contains(word), "the log does not say {word:?}:\n{log}");
    }
    let state = std::fs::read("/var/lib/kubelet/graceful_node_shutdown_state").unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert!(state["startTime"].as_str() < state["endTime"].as_str(), "{state}");

    assert_eq!(property("InhibitDelayMaxUSec"), NEEDED, "logind has read the drop-in at its start");
    let node = Node::start();
    until_locked("after the reboot");
    node.run_pod("new", "", 1, "true");
    assert_eq!(["first", "early"].map(|name| node.ended(name).0), [7, 7]);
    let [usual, stubborn, critical] = ["usual", "stubborn", "critical"].map(|name| node.ended(name));
    assert_eq!((usual.0, stubborn.0, critical.0), (7, 137, 7));
    assert!(usual.1 < critical.1 && stubborn.1 < critical.1, "{usual:?} {stubborn:?} {critical:?}");
    let since: Vec<String> = words().into_iter().skip(spoken.len()).map(|(_, word)| word).collect();
    assert_eq!(since, ["new up"], "pods that the shutdown has ended stay so");
    run(orlop().arg("down"));
}

#[test]
#[ignore = "reboots the machine: cargo xtask guest test reboot"]
fn pods_end_before_the_machine_goes_down() {
    need_guest();
    if Path::new(FOLDER).exists() {
        come_back();
    } else {
        go_down();
    }
}
