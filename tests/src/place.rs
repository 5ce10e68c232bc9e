//! Where a test finds programs and keeps its state, and the namespaces that it runs in.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Folder of our programs: `ORLOP_PROGRAMS`, set by `cargo xtask test`.
///
/// # Panics
/// With what to do, when it isn't set or incomplete.
#[must_use]
pub fn programs() -> PathBuf {
    let folder = std::env::var_os("ORLOP_PROGRAMS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/programs/dev"), PathBuf::from);
    for program in ["orlop-shim", "orlop-pause", "orlop-runtime"] {
        assert!(
            folder.join(program).is_file(),
            "{program} is not built: run `cargo xtask build`, or all tests by `cargo xtask test`"
        );
    }
    folder
}

/// The cache of foreign programs and images: `ORLOP_CACHE`, or `~/.cache/orlop`.
///
/// # Panics
/// When neither it nor HOME is set.
#[must_use]
pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/orlop");
    std::env::var_os("ORLOP_CACHE").map_or_else(home, PathBuf::from)
}

/// A foreign program from the cache.
///
/// # Panics
/// With what to do, when it isn't there.
#[must_use]
pub fn foreign(name: &str) -> PathBuf {
    let program = cache().join("bin").join(name);
    assert!(program.is_file(), "{name} is not built: run `cargo xtask foreign`, or all tests by `cargo xtask test`");
    program
}

/// A Debian program.
///
/// # Panics
/// With the package to install, when it isn't there.
#[must_use]
pub fn debian(program: &str, package: &str) -> PathBuf {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is missing: apt-get install {package}"))
}

/// Stops a test that needs root.
///
/// # Panics
/// When the test does not run as root.
pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes namespaces, mounts and cgroups: run it as root (cargo xtask test does)"
    );
}

/// Moves this thread into a mount namespace of its own, whose mounts are shared among its own children only.
///
/// # Panics
/// When the kernel refuses.
pub fn private_mounts() {
    need_root();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare the mounts");
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, flags, none).expect("make the mounts private");
}

/// A root file system of Debian's busybox and the names it is called by.
///
/// # Panics
/// When busybox is missing or the folder can't be written.
pub fn busybox_root(folder: &Path) {
    root_of(&debian("busybox", "busybox-static"), folder);
}

/// A root file system of a busybox and the names it is called by.
///
/// # Panics
/// When busybox does not run or the folder can't be written.
pub fn root_of(busybox: &Path, folder: &Path) {
    std::fs::create_dir_all(folder.join("bin")).unwrap();
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        std::fs::set_permissions(folder.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::copy(busybox, folder.join("bin/busybox")).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|name| *name != "busybox") {
        // Hard links: what hides one of them hides no other.
        let _ = std::fs::hard_link(folder.join("bin/busybox"), folder.join("bin").join(applet));
    }
    std::fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        .unwrap();
    std::fs::write(folder.join("etc/group"), "root:x:0:\nnobody:x:65534:\n").unwrap();
}
