//! Create, start, end and delete of single containers: `orlop-runtime` beside runc, crun and youki.
//! `cargo xtask bench runtime` builds what it needs and runs it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_kernel::process;
use orlop_tests::census::remove_empty_cgroups;
use orlop_tests::place::{busybox_root, debian, foreign, private_mounts, programs};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Rounds that are measured; those before warm up.
const ROUNDS: usize = 60;
const WARM_UP: usize = 3;

/// A program that is measured.
struct Subject {
    name: &'static str,
    program: PathBuf,
    /// Arguments before its own.
    first: &'static [&'static str],
}

/// Times of one round.
#[derive(Clone, Copy, Default)]
struct Round {
    create: Duration,
    start: Duration,
    delete: Duration,
    whole: Duration,
    cpu: Duration,
}

/// Where the containers are.
struct Place {
    folder: PathBuf,
    mark: String,
}

fn main() {
    private_mounts();
    // crun refuses to work where v2 has controllers beside v1. Nobody outside of this namespace loses anything.
    let mixed = Path::new("/sys/fs/cgroup/unified");
    if std::fs::read_to_string(mixed.join("cgroup.controllers")).is_ok_and(|text| !text.trim().is_empty()) {
        nix::mount::umount(mixed).expect("unmount the controllers of v2");
    }
    // What is left without a parent is waited for here, and its time counts.
    process::become_subreaper().expect("become the parent of orphans");
    let base = tempfile::tempdir().expect("make a folder");
    let mark = format!("orlop-bench-runtime-{}", std::process::id());
    let place = Place { folder: base.path().to_path_buf(), mark };
    busybox_root(&place.folder.join("bundle/rootfs"));
    let subjects = subjects();
    println!("{ROUNDS} rounds of each; milliseconds, median (minimum)\n");
    for (title, args) in [
        ("a program that ends at once (true)", &["true"][..]),
        ("a program that is killed (sleep)", &["sleep", "1000"]),
    ] {
        place.write_config(args);
        println!("| {title} | create | start | delete | all | CPU of all |\n|---|---|---|---|---|---|");
        let mut rounds: Vec<Vec<Round>> = subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..WARM_UP + ROUNDS {
            // One after the other in each round: what else the machine does meets them all. And in another order in each:
            // what one leaves the kernel to clean up delays the next, which must not always be the same.
            let mut order: Vec<usize> = (0..subjects.len()).collect();
            order.shuffle(&mut StdRng::seed_from_u64(round as u64));
            for which in order {
                let taken = place.measure(&subjects[which], args[0] == "sleep");
                if round >= WARM_UP {
                    rounds[which].push(taken);
                }
            }
        }
        for (subject, rounds) in subjects.iter().zip(&rounds) {
            report(subject.name, rounds);
        }
        println!();
    }
    remove_empty_cgroups(&place.mark);
}

/// The programs that are measured.
fn subjects() -> Vec<Subject> {
    let subject = |name, program, first| Subject { name, program, first };
    vec![
        subject("orlop-runtime", programs().join("orlop-runtime"), &[][..]),
        subject("orlop runtime", programs().join("orlop"), &["runtime"]),
        subject("runc 1.5.2", foreign("runc"), &[]),
        subject("crun of Debian 12", debian("crun", "crun"), &[]),
        subject("youki 0.7.0", foreign("youki"), &[]),
    ]
}

impl Place {
    /// The specification that runc begins with, without a terminal.
    fn write_config(&self, args: &[&str]) {
        let file = self.folder.join("bundle/config.json");
        let _ = std::fs::remove_file(&file);
        let made = Command::new(foreign("runc")).arg("spec").current_dir(self.folder.join("bundle")).status();
        assert!(made.expect("run runc spec").success());
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("read config.json")).expect("config.json is JSON");
        // The oldest version that has all that is used: every program takes it.
        config["ociVersion"] = "1.0.2".into();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(args);
        config["process"]["env"] = serde_json::json!(["PATH=/bin"]);
        config["linux"]["cgroupsPath"] = format!("/{}/c", self.mark).into();
        std::fs::write(&file, config.to_string()).expect("write config.json");
    }

    fn run(&self, subject: &Subject, arguments: &[&str]) -> Duration {
        let mut command = Command::new(&subject.program);
        command.args(subject.first).arg("--root").arg(self.folder.join("state")).args(arguments);
        command.current_dir(self.folder.join("bundle")).stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(self.folder.join("log")).expect("make the log");
        command.stderr(log);
        let began = Instant::now();
        let status = command.status().expect("run the program");
        let taken = began.elapsed();
        let said = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        assert!(status.success(), "{} {arguments:?}: {}", subject.name, said());
        taken
    }

    fn measure(&self, subject: &Subject, kill: bool) -> Round {
        let pid_file = self.folder.join("pid");
        let (before, began) = (cpu(), Instant::now());
        let create = self.run(subject, &["create", "--pid-file", pid_file.to_str().expect("a text"), "c"]);
        let pidfd = open(&pid_file);
        let start = self.run(subject, &["start", "c"]);
        if kill {
            self.run(subject, &["kill", "c", "KILL"]);
        }
        process::wait_for(&pidfd);
        let delete = self.run(subject, &["delete", "c"]);
        let whole = began.elapsed();
        while process::reap().is_some() {}
        Round { create, start, delete, whole, cpu: cpu().saturating_sub(before) }
    }
}

fn open(pid_file: &Path) -> OwnedFd {
    let text = std::fs::read_to_string(pid_file).expect("read the pid file");
    let pid = text.trim().parse().ok().and_then(Pid::from_raw).expect("a process number");
    pidfd_open(pid, PidfdFlags::empty()).expect("open the container's process")
}

/// Processor time of all children that have ended.
fn cpu() -> Duration {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("ask for the usage");
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros(value.tv_sec() as u64 * 1_000_000 + value.tv_usec() as u64)
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn report(name: &str, rounds: &[Round]) {
    let figure = |pick: fn(&Round) -> Duration| {
        let mut times: Vec<f64> = rounds.iter().map(|round| pick(round).as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        format!("{:.1} ({:.1})", times[times.len() / 2], times[0])
    };
    let columns =
        [figure(|r| r.create), figure(|r| r.start), figure(|r| r.delete), figure(|r| r.whole), figure(|r| r.cpu)];
    println!("| {name} | {} |", columns.join(" | "));
}
