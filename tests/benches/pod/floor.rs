//! The floor: the system calls that no runtime can do without, by a process that does nothing else.
//!
//! Per pod: a network namespace, a veth pair on a bridge, an address and a route; cgroups of pod, pause and container;
//! an overlay; two processes in new namespaces that exec. No checks, no records, no file system in the container.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use orlop_kernel::cgroup::{Cgroups, Resources};
use orlop_kernel::network::{Links, Route, VethPair};
use orlop_kernel::process::{Side, new};
use orlop_kernel::{mount, namespace, process};
use orlop_tests::place::{debian, programs};
use orlop_tests::world::{World, read};
use serde::{Deserialize, Serialize};

use crate::ROUNDS;

/// Times of the floor, in milliseconds.
#[derive(Default, Serialize, Deserialize)]
pub struct Floor {
    /// As of a pod that comes up.
    pub up: Vec<f64>,
    /// As of a pod that goes.
    pub down: Vec<f64>,
    /// As of an exec.
    pub exec: Vec<f64>,
}

/// Measures it inside a world, by a process of its own.
pub fn run(world: &World) -> Floor {
    let own = std::env::current_exe().expect("the path of this program");
    let text = read(world.command(own).arg("--floor").arg(world.folder()));
    serde_json::from_str(&text).expect("the floor's figures")
}

/// Measures it here and prints it.
pub fn measure(folder: &Path) {
    let cgroups = Cgroups::detect().expect("cgroups");
    let links = Links::open().expect("netlink");
    links.add_bridge("floor", 0, false).expect("make a bridge");
    let bridge = links.find("floor").expect("find the bridge").expect("the bridge is there").index;
    links.set_up(bridge, true).expect("raise the bridge");
    let group = format!("/orlop-floor-{}", std::process::id());
    let mut floor = Floor::default();
    for round in 0..=ROUNDS {
        let pod = Pod { folder, cgroups: &cgroups, group: &group, links: &links, bridge, round };
        let began = Instant::now();
        let (pause, container) = pod.up();
        let up = began.elapsed();
        let began = Instant::now();
        let program = debian("busybox", "busybox-static");
        reap(spawn(0, None, &program, &["busybox", "true"]));
        let exec = began.elapsed();
        let began = Instant::now();
        pod.down(pause, container);
        if round > 0 {
            for (list, time) in [(&mut floor.up, up), (&mut floor.exec, exec), (&mut floor.down, began.elapsed())] {
                list.push(time.as_secs_f64() * 1e3);
            }
        }
    }
    cgroups.remove(&group, || {}).expect("remove the cgroup of all pods");
    print!("{}", serde_json::to_string(&floor).expect("JSON"));
}

struct Pod<'a> {
    folder: &'a Path,
    cgroups: &'a Cgroups,
    /// The cgroup of all pods.
    group: &'a str,
    links: &'a Links,
    bridge: u32,
    round: usize,
}

impl Pod<'_> {
    fn cgroup(&self, of: &str) -> String {
        format!("{}/pod{}/{of}", self.group, self.round)
    }

    fn network(&self) -> std::path::PathBuf {
        self.folder.join(format!("netns-{}", self.round))
    }

    fn up(&self) -> (i32, i32) {
        let network = self.network();
        namespace::create_network(&network).expect("make a network namespace");
        let descriptor = namespace::open(&network).expect("open the namespace");
        let name = format!("floor{}", self.round);
        let pair = VethPair {
            name: &name,
            controller: Some(self.bridge),
            peer: "eth0",
            peer_namespace: descriptor.as_fd(),
            peer_mac: None,
            mtu: 0,
        };
        self.links.add_veth(&pair).expect("make a veth pair");
        namespace::in_network(&network, configure).expect("enter the network namespace");
        for of in ["pause", "container"] {
            self.cgroups.create(&self.cgroup(of), &Resources::default()).expect("make the cgroups");
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(|kind| {
            let folder = self.folder.join(format!("{kind}-{}", self.round));
            std::fs::create_dir(&folder).expect("make a folder");
            folder
        });
        let root = mount::overlay(&[lower], &upper, &work).expect("make an overlay");
        let spaces = new::PID | new::MOUNT | new::IPC | new::UTS;
        let pause = spawn(spaces, Some((self, "pause")), &programs().join("orlop-pause"), &["pause"]);
        let busybox = debian("busybox", "busybox-static");
        let container = spawn(spaces, Some((self, "container")), &busybox, &["busybox", "sleep", "3600"]);
        drop(root);
        (pause, container)
    }

    fn down(&self, pause: i32, container: i32) {
        for pid in [container, pause] {
            process::kill(pid, 9).expect("kill");
            reap(pid);
        }
        namespace::remove_network(&self.network()).expect("remove the network namespace");
        for of in ["pause", "container", ""] {
            self.cgroups.remove(self.cgroup(of).trim_end_matches('/'), || {}).expect("remove the cgroups");
        }
    }
}

/// Inside the pod's network.
fn configure() {
    let links = Links::open().expect("netlink");
    let link = links.find("eth0").expect("find eth0").expect("eth0 is there").index;
    links.set_up(1, true).expect("raise lo");
    links.set_up(link, true).expect("raise eth0");
    links.add_address(link, "10.66.0.2/16".parse().expect("an address")).expect("add the address");
    let route = Route {
        destination: "0.0.0.0/0".parse().expect("a network"),
        gateway: Some("10.66.0.1".parse().expect("an address")),
        link,
        priority: 0,
        table: 0,
        scope: None,
        mtu: 0,
        advertised_mss: 0,
    };
    links.add_route(&route).expect("add the route");
}

/// Starts a process and waits until it has exec'd.
fn spawn(spaces: u64, cgroup: Option<(&Pod<'_>, &str)>, program: &Path, arguments: &[&str]) -> i32 {
    let (mut told, tells) = std::io::pipe().expect("make a pipe");
    let words: Vec<CString> = arguments.iter().map(|word| CString::new(*word).expect("a word")).collect();
    match process::clone(spaces).expect("clone") {
        Side::Child => {
            if let Some((pod, of)) = cgroup {
                pod.cgroups.join(&pod.cgroup(of), 0).expect("join the cgroups");
            }
            let error = process::exec(program, &words, &[]);
            eprintln!("exec {}: {error}", program.display());
            std::process::abort();
        }
        Side::Parent { pid, .. } => {
            drop(tells);
            // The pipe closes with the exec.
            let _ = told.read(&mut [0]);
            pid
        }
    }
}

/// Waits for the end of a process.
fn reap(pid: i32) {
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).expect("wait");
}
