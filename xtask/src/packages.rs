//! Debian packages that a task needs: says which, installs what is missing, uses sudo only when not root.

use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::{have, run, say};

/// A Debian package and the program (or file) that shows that it is there.
pub struct Package {
    /// Name of the package.
    pub name: &'static str,
    /// A program on the PATH, or an absolute path.
    pub shown_by: &'static str,
}

/// To build: a linker and the headers of libc.
pub const BUILD: &[Package] =
    &[Package { name: "gcc", shown_by: "gcc" }, Package { name: "libc6-dev", shown_by: "/usr/include/stdlib.h" }];

/// To unpack and build a Debian source package: dpkg-dev brings make, patch, bzip2 and xz.
pub const SOURCE: &[Package] = &[
    Package { name: "dpkg-dev", shown_by: "dpkg-source" },
    Package { name: "make", shown_by: "make" },
    Package { name: "busybox-static", shown_by: "/var/lib/dpkg/info/busybox-static.md5sums" },
];

/// To test: images are made of files of the first four, as dpkg knows them; the rest serves and inspects.
pub const TEST: &[Package] = &[
    Package { name: "busybox-static", shown_by: "/var/lib/dpkg/info/busybox-static.md5sums" },
    Package { name: "nginx-light", shown_by: "/var/lib/dpkg/info/nginx-light.md5sums" },
    Package { name: "redis-server", shown_by: "/var/lib/dpkg/info/redis-server.md5sums" },
    Package { name: "python3.11", shown_by: "/var/lib/dpkg/info/python3.11.md5sums" },
    Package { name: "docker-registry", shown_by: "docker-registry" },
    Package { name: "skopeo", shown_by: "skopeo" },
    Package { name: "umoci", shown_by: "umoci" },
    Package { name: "apache2-utils", shown_by: "htpasswd" },
    Package { name: "iproute2", shown_by: "ip" },
    Package { name: "nftables", shown_by: "nft" },
    Package { name: "iptables", shown_by: "iptables" },
    Package { name: "util-linux", shown_by: "unshare" },
    Package { name: "bsdutils", shown_by: "script" },
    Package { name: "curl", shown_by: "curl" },
    Package { name: "dbus-daemon", shown_by: "dbus-daemon" },
    Package { name: "git", shown_by: "git" },
];

/// To measure: ISA-L's gzip is the floor of unpacking.
pub const BENCH: &[Package] = &[Package { name: "isal", shown_by: "igzip" }];

/// To make a guest and to run it.
pub const GUEST: &[Package] = &[
    Package { name: "qemu-system-x86", shown_by: "qemu-system-x86_64" },
    Package { name: "mmdebstrap", shown_by: "mmdebstrap" },
    Package { name: "e2fsprogs", shown_by: "mke2fs" },
    Package { name: "debian-archive-keyring", shown_by: "/usr/share/keyrings/debian-archive-keyring.gpg" },
];

/// Installs what is missing of the packages.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| match package.shown_by.starts_with('/') {
            true => !std::path::Path::new(package.shown_by).exists(),
            false => !have(package.shown_by),
        })
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !have("apt-get") {
        bail!("these programs are missing and this is not Debian; install what the packages {missing:?} hold");
    }
    say(format!("installing Debian packages: {}", missing.join(" ")));
    run(as_root("apt-get").args(["update", "-qq"]))?;
    run(as_root("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// A command with root's rights: through sudo unless we are root.
pub fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env=ORLOP_CACHE,ORLOP_PROGRAMS,DEBIAN_FRONTEND,RUST_LOG").arg(program);
    command
}
