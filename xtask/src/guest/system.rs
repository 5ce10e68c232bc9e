//! The guest's system: Debian 12 as a disk image with its kernel, built once into the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::busybox::{KEYS, archives};
use crate::packages::{self, as_root};
use crate::workspace::{cache, run, say};

/// Raised when what is below changes the system.
const RECIPE: u32 = 2;
/// The version of Debian that test programs of this machine can run on.
const SUITE: &str = "bookworm";
/// What a machine has beside what tests want of any machine.
const PACKAGES: [&str; 10] = [
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "apparmor",
    "criu",
    "crun",
    // critest calls it to load profiles.
    "sudo",
];
/// The unit that is booted into.
const UNIT: &str = include_str!("guest.service");
/// Name of that unit.
pub const UNIT_NAME: &str = "orlop-guest.service";
/// Size of the disk; it has holes where nothing is.
const SIZE: &str = "6G";

/// Where the parts are.
pub struct System {
    /// The root disk.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first file system.
    pub initrd: PathBuf,
}

impl System {
    /// Builds the system unless it is in the cache. An older one is removed.
    pub fn build() -> Result<System> {
        let names = PACKAGES.into_iter().chain(packages::TEST.iter().map(|package| package.name));
        let include = names.collect::<Vec<_>>().join(",");
        let mut key = Sha256::new();
        key.update(RECIPE.to_le_bytes());
        for part in [SUITE, &include, UNIT, SIZE] {
            key.update(part);
        }
        let all = cache()?.join("guest");
        let place = all.join(hex::encode(&key.finalize()[..8]));
        if !place.is_dir() {
            say(format!("building the guest's system, once: Debian {SUITE} with its kernel (5 minutes)"));
            let work = all.join("making");
            let made = make(&work, &include);
            if made.is_err() {
                let _ = remove(&work);
            }
            made?;
            for old in std::fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?.flatten() {
                if old.path() != work {
                    remove(&old.path())?;
                }
            }
            std::fs::rename(&work, &place).with_context(|| format!("rename to {}", place.display()))?;
        }
        let [disk, kernel, initrd] = ["system.img", "vmlinuz", "initrd"].map(|name| place.join(name));
        Ok(System { disk, kernel, initrd })
    }
}

/// Makes disk, kernel and first file system in a folder.
fn make(work: &Path, include: &str) -> Result<()> {
    remove(work)?;
    std::fs::create_dir_all(work).with_context(|| format!("make {}", work.display()))?;
    let (root, unit, sources) = (work.join("root"), work.join("unit"), work.join("sources.list"));
    std::fs::write(&unit, UNIT).with_context(|| format!("write {}", unit.display()))?;
    let lines: String = archives()?.lines().map(|line| format!("deb [signed-by={KEYS}] {line}\n")).collect();
    std::fs::write(&sources, lines).with_context(|| format!("write {}", sources.display()))?;
    // In a mount namespace of its own, so that what it mounts in there is gone with it, however it ends.
    let mut debian = as_root("unshare");
    debian.args(["--mount", "mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory"]);
    for folder in ["doc", "man", "locale"] {
        debian.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    debian.arg(format!("--include={include}"));
    debian.arg(format!("--customize-hook=upload '{}' /etc/systemd/system/{UNIT_NAME}", unit.display()));
    // Its own name, which sudo looks for.
    let name = r#"--customize-hook=echo guest > "$1/etc/hostname"; echo 127.0.0.1 localhost guest > "$1/etc/hosts""#;
    debian.arg(name).arg(SUITE).arg(&root).arg(&sources);
    run(&mut debian).with_context(|| format!("make a Debian in {}", root.display()))?;
    let boot = root.join("boot");
    let entries = std::fs::read_dir(&boot).with_context(|| format!("read {}", boot.display()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let named = |file: &&PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let file = files.iter().find(named).with_context(|| format!("no {prefix}… in {}", boot.display()))?;
        run(as_root("install").args(["-m", "644"]).arg(file).arg(work.join(name)))?;
    }
    let disk = work.join("system.img");
    // Each run writes into a copy that is thrown away, so a journal would be for nobody.
    run(as_root("mke2fs").args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&disk).arg(SIZE))?;
    run(as_root("chmod").arg("644").arg(&disk))?;
    for rest in [root, unit, sources] {
        remove(&rest)?;
    }
    Ok(())
}

/// Removes a file or folder of root's, if it is there.
fn remove(path: &Path) -> Result<()> {
    run(as_root("rm").args(["-rf", "--one-file-system", "--"]).arg(path))
}
