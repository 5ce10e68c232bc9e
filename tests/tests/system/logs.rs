//! Logs that have become too long: rotated by the agent, and whole for who follows them.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::case::{Case, container};
use orlop_tests::cluster::{Backend, Cluster, Setup};
use orlop_tests::world::{run, until_within};
use serde_json::{Value, json};

/// The bounds that the agent is told.
const BOUNDS: &str = "containerLogMaxSize: 40Ki\ncontainerLogMaxFiles: 4\ncontainerLogMonitorInterval: 3s\n";
const FILES_MAX: usize = 4;
/// Lines that the pod writes, each long enough that a rotation is due at each look.
const LINES: usize = 1600;

/// The files of a container's log, sorted by name: the live one, then the oldest.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The numbers that lines begin with.
fn numbers(text: &str) -> Vec<usize> {
    text.lines().map(|line| line.split(' ').next().unwrap().parse().expect("a number")).collect()
}

/// What is in a file of a log, unpacked where it is packed.
fn text(file: &Path) -> String {
    if file.extension().is_some_and(|extension| extension == "gz") {
        return String::from_utf8(run(std::process::Command::new("gzip").arg("-dc").arg(file)).stdout).unwrap();
    }
    std::fs::read_to_string(file).unwrap()
}

/// No more files than allowed at any time, old ones packed; who follows has each line once, who comes later those that are
/// kept; a daemon that was killed with a log put aside makes it again.
pub fn rotation(backend: Backend) {
    let cluster = Cluster::start_with(backend, Setup { kubelet: BOUNDS, ..Setup::default() });
    let case = Case::start(&cluster, "logs");
    let script = format!(
        "pad=$(printf '%0200d' 0); i=0; while [ $i -lt {LINES} ]; do echo $i $pad; i=$((i+1)); sleep 0.01; done"
    );
    case.make_pod("talks", json!({"restartPolicy": "Never", "containers": [{"command": ["sh", "-c", script]}]}));
    let pod = case.until_pod("talks", "runs", |pod| pod["status"]["phase"] == "Running");
    let mut follow = case.kubectl(&["logs", "-f", "talks"]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().expect("start kubectl");
    let mut stdout = follow.stdout.take().unwrap();
    let followed = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let name = pod["spec"]["containers"][0]["name"].as_str().unwrap();
    let folder = cluster.world.root.join(format!("log/pods/{}_talks_{uid}/{name}", case.namespace));
    let ended = until_within(Duration::from_secs(120), "the pod has written all", || {
        // A file that is being packed is there three times for a moment.
        let plain = |file: &PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.trim_end_matches(".tmp").trim_end_matches(".gz").to_string()
        };
        let names: BTreeSet<String> = files(&folder).iter().map(plain).collect();
        assert!(names.len() <= FILES_MAX, "{names:?}");
        let pod = case.pod("talks");
        (pod["status"]["phase"] == "Succeeded").then_some(pod)
    });
    assert_eq!(container(&ended, name)["restartCount"], 0);
    let followed = followed.join().unwrap().expect("read what kubectl prints");
    assert!(follow.wait().unwrap().success());
    assert_eq!(numbers(&followed), (0..LINES).collect::<Vec<_>>(), "who follows misses nothing and sees nothing twice");
    let all = files(&folder);
    assert!(all.len() > 2, "{all:?}");
    let packed = all.iter().filter(|file| file.extension().is_some_and(|kind| kind == "gz")).count();
    assert_eq!(packed, all.len() - 2, "all but the live one and the one before it: {all:?}");
    let stored: usize = all.iter().map(|file| text(file).lines().count()).sum();
    let kept = numbers(&case.log("talks", ""));
    assert_eq!((kept.len(), *kept.last().unwrap()), (stored, LINES - 1));
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "{kept:?}");
    a_lost_log_is_made_again(&case);
    case.end();
    cluster.assert_nothing_left();
}

/// As after a kill between the renaming of a log and the runtime's word of it.
fn a_lost_log_is_made_again(case: &Case<'_>) {
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";
    case.make_pod(
        "goes-on",
        json!({"terminationGracePeriodSeconds": 1, "containers": [{"command": ["sh", "-c", script]}]}),
    );
    let pod: Value = case.until_ready("goes-on");
    let (uid, name) = (&pod["metadata"]["uid"], pod["spec"]["containers"][0]["name"].as_str().unwrap());
    let folder = format!("log/pods/{}_goes-on_{}/{name}", case.namespace, uid.as_str().unwrap());
    let folder = case.cluster.world.root.join(folder);
    let live = folder.join("0.log");
    until_within(Duration::from_secs(10), "the first line", || (live.metadata().ok()?.len() > 0).then_some(()));
    std::fs::rename(&live, folder.join("0.log.20260102-030405")).unwrap();
    until_within(Duration::from_secs(30), "the log is made again", || (live.metadata().ok()?.len() > 0).then_some(()));
    let kept = numbers(&case.log("goes-on", ""));
    assert!(kept.iter().enumerate().all(|(place, number)| place == *number), "{kept:?}");
}
