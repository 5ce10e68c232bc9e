//! Units of the real systemd. Needs root, and a machine that systemd has booted with cgroup v2.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use orlop_kernel::cgroup::unit::{Scope, slice_path};
use orlop_kernel::cgroup::{Cgroups, Cpu, Memory, Pids, Resources};
use orlop_systemd::Manager;

/// Ends a test that was asked for where no units can be had.
fn need_systemd() {
    let has = Path::new("/run/systemd/system").exists() && matches!(Cgroups::detect(), Ok(Cgroups::V2(_)));
    assert!(has, "this machine has no systemd, or no cgroup v2: cargo xtask guest test systemd_units");
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

fn limits(memory: i64) -> Resources {
    Resources {
        memory: Some(Memory { limit: Some(memory), ..Memory::default() }),
        cpu: Some(Cpu {
            shares: Some(512),
            quota: Some(20_000),
            period: Some(50_000),
            cpus: Some("0".into()),
            ..Cpu::default()
        }),
        pids: Some(Pids { limit: 20 }),
        ..Resources::default()
    }
}

fn folder(path: &str) -> PathBuf {
    Cgroups::detect().unwrap().folders(path).unwrap().remove(0)
}

fn read(path: &str, file: &str) -> String {
    let file = folder(path).join(file);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_string()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd_units"]
async fn a_scope_from_first_to_last() {
    need_systemd();
    assert!(!Manager.version().await.unwrap().is_empty());
    let slice = format!("orlopunits{}-a.slice", std::process::id());
    let scope = Scope::of(&slice, "1").unwrap();
    let path = scope.path().unwrap();
    let mut first = sleeper();
    Manager.start_scope(&scope, "a test", first.id(), &limits(32 << 20)).await.unwrap();
    for (file, text) in [
        ("memory.max", "33554432"),
        ("cpu.max", "20000 50000"),
        ("cpu.weight", "59"),
        ("pids.max", "20"),
        ("cpuset.cpus", "0"),
        ("cgroup.procs", &first.id().to_string()),
    ] {
        assert_eq!(read(&path, file), text, "{file}");
    }
    let said = Manager.start_scope(&scope, "again", first.id(), &limits(1 << 20)).await.unwrap_err();
    assert!(said.is_there(), "{said}");
    Manager.set_limits(&scope.name, &limits(48 << 20)).await.unwrap();
    for _ in 0..2 {
        assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
        // A request after it has been answered: what came before it is done.
        Manager.set_limits(&scope.name, &limits(48 << 20)).await.unwrap();
        assert_eq!(read(&path, "memory.max"), "50331648");
    }
    // Another process joins by the path, and the first one ends.
    let mut second = sleeper();
    let cgroups = Cgroups::detect().unwrap();
    cgroups.join(&path, second.id() as i32).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(cgroups.processes(&path), [second.id() as i32]);
    Manager.stop(&scope.name).await.unwrap();
    assert!(!second.wait().unwrap().success());
    assert!(!cgroups.exists(&path));
    Manager.stop(&scope.name).await.unwrap();
    let said = Manager.set_limits(&scope.name, &limits(1 << 20)).await.unwrap_err();
    assert!(said.is_missing(), "{said}");
    Manager.stop(&format!("orlopunits{}.slice", std::process::id())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd_units"]
async fn slices_stay_without_a_process() {
    need_systemd();
    let top = format!("orlopslices{}", std::process::id());
    let slice = format!("{top}-a-b.slice");
    let path = slice_path(&slice).unwrap();
    Manager.start_slice(&slice, "a test", &limits(32 << 20)).await.unwrap();
    assert_eq!(read(&path, "memory.max"), "33554432");
    Manager.start_slice(&slice, "a test", &limits(48 << 20)).await.unwrap();
    let dead = Manager.start_scope(&Scope::of(&slice, "1").unwrap(), "nobody", u32::MAX >> 1, &limits(1 << 20)).await;
    let said = dead.expect_err("no process has that number").to_string();
    assert!(said.contains("orlop-1.scope"), "{said}");
    Manager.stop(&format!("{top}.slice")).await.unwrap();
    assert!(!Cgroups::detect().unwrap().exists(&path));
}
