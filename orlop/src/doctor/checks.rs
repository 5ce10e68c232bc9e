//! What one machine has: rights, kernel, file systems, cgroups, programs, room.

use std::path::Path;

use orlop_kernel::capability;
use orlop_kernel::cgroup::{Cgroups, Resources};
use orlop_kernel::mount::{self, FsOption};
use rustix::mount::MountAttrFlags;

use super::{Finding, Place, chain};
use crate::cri::beside;

/// What all parts are written for: `mount_setattr` came with 5.12, `cgroup.kill` with 5.14.
const KERNEL_MIN: (u32, u32) = (5, 14);
/// Capabilities that no step can do without.
const CAPABILITIES: [&str; 8] = [
    "CAP_SYS_ADMIN",
    "CAP_NET_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
];
/// Free bytes below which images soon don't fit.
const FREE_MIN: u64 = 1 << 30;
/// Descriptors that a full node uses, and some.
const FILES_MIN: u64 = 8192;

pub(super) fn root(_: &Place) -> Finding {
    let permitted = match capability::permitted() {
        Ok(permitted) => permitted,
        Err(error) => return Finding::Missing(format!("capabilities can't be read: {error}"), "mount /proc".into()),
    };
    let lacking: Vec<&str> = CAPABILITIES.into_iter().filter(|name| !permitted.has(name)).collect();
    match (lacking.is_empty(), rustix::process::geteuid().is_root()) {
        (true, _) => Finding::Fine("all capabilities that are needed".into()),
        (false, false) => Finding::Missing("not root".into(), "run it as root: sudo orlop doctor".into()),
        (false, true) => Finding::Missing(
            format!("root without {}", lacking.join(", ")),
            "the container or service that this runs in takes them away; grant them there".into(),
        ),
    }
}

pub(super) fn kernel(_: &Place) -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => Finding::Missing(
            format!("Linux {release}"),
            format!("Linux {}.{} or newer is needed; boot a newer kernel", KERNEL_MIN.0, KERNEL_MIN.1),
        ),
        _ => Finding::Fine(format!("Linux {release}")),
    }
}

pub(super) fn namespaces(_: &Place) -> Finding {
    let kinds =
        [("mnt", ""), ("net", "NET_NS"), ("pid", "PID_NS"), ("ipc", "IPC_NS"), ("uts", "UTS_NS"), ("cgroup", "")];
    let lacking: Vec<_> =
        kinds.into_iter().filter(|(kind, _)| !Path::new("/proc/self/ns").join(kind).exists()).collect();
    if lacking.is_empty() {
        return Finding::Fine(kinds.map(|(kind, _)| kind).join(" "));
    }
    let names: Vec<&str> = lacking.iter().map(|(kind, _)| *kind).collect();
    let options: Vec<String> =
        lacking.iter().filter(|(_, option)| !option.is_empty()).map(|(_, option)| format!("CONFIG_{option}")).collect();
    Finding::Missing(
        format!("the kernel has no namespaces of kind {}", names.join(", ")),
        format!(
            "boot a kernel with {}",
            if options.is_empty() { "CONFIG_NAMESPACES".into() } else { options.join(", ") }
        ),
    )
}

pub(super) fn mounts(_: &Place) -> Finding {
    let advice = "root with CAP_SYS_ADMIN and a kernel with fsopen, fsmount and mount_setattr (5.12) are needed";
    let made = mount::new_filesystem("tmpfs", "tmpfs", &[FsOption::Value("size", "64k")], MountAttrFlags::empty());
    match made {
        Ok(_) => Finding::Fine("file systems can be mounted by descriptor".into()),
        Err(error) => Finding::Missing(format!("a tmpfs can't be made: {}", chain(&error)), advice.into()),
    }
}

pub(super) fn overlay(place: &Place) -> Finding {
    let folder = place.scratch.join("overlay");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| folder.join(name));
    let made = [&lower, &upper, &work].into_iter().try_for_each(std::fs::create_dir_all);
    if let Err(error) = made {
        return Finding::Missing(
            format!("{} can't be written: {error}", place.scratch.display()),
            "make its file system writable, or choose another folder by --root".into(),
        );
    }
    match mount::overlay(&[lower], &upper, &work) {
        Ok(_) => Finding::Fine(format!("works on the file system of {}", place.layout.state.display())),
        Err(error) => Finding::Missing(
            format!("can't be mounted over {}: {}", place.layout.state.display(), chain(&error)),
            "modprobe overlay (CONFIG_OVERLAY_FS); the state must lie on ext4, xfs or btrfs, not on an overlay: --root \
             chooses another folder"
                .into(),
        ),
    }
}

pub(super) fn cgroups(_: &Place) -> Finding {
    let advice = "mount -t cgroup2 cgroup2 /sys/fs/cgroup, and enable the controllers cpu, memory and pids on the \
                  kernel's command line if it lacks them (cgroup_enable=memory)";
    let missing = |found: String| Finding::Missing(found, advice.into());
    let cgroups = match Cgroups::detect() {
        Ok(cgroups) => cgroups,
        Err(error) => return missing(chain(&error)),
    };
    let (version, controllers) = match &cgroups {
        Cgroups::V1(all) => ("version 1", all.iter().flat_map(|one| one.controllers.clone()).collect()),
        Cgroups::V2(mount) => {
            let text = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            ("version 2", text.split_whitespace().map(str::to_string).collect::<Vec<_>>())
        }
    };
    let lacking: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !controllers.iter().any(|controller| controller == wanted))
        .collect();
    if !lacking.is_empty() {
        return missing(format!("{version} without the controllers {}", lacking.join(", ")));
    }
    let path = format!("/orlop-doctor-{}", std::process::id());
    let made = cgroups.create(&path, &Resources::default());
    let removed = cgroups.remove(&path, || {});
    match made.and(removed) {
        Ok(()) => Finding::Fine(format!("{version}: {}", controllers.join(" "))),
        Err(error) => missing(format!("{version}, but none can be made: {}", chain(&error))),
    }
}

pub(super) fn seccomp(_: &Place) -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => Finding::Fine("system calls can be filtered".into()),
        _ => Finding::Missing(
            "the kernel can't filter system calls".into(),
            "boot a kernel with CONFIG_SECCOMP_FILTER; containers are never run without".into(),
        ),
    }
}

pub(super) fn programs(place: &Place) -> Finding {
    let lacking: Vec<String> = ["orlop-shim", "orlop-pause", "orlop-runtime", "orlop-cni-plugins"]
        .into_iter()
        .filter_map(|name| beside(name).ok().filter(|path| !path.is_file()))
        .map(|path| path.display().to_string())
        .collect();
    if !lacking.is_empty() {
        return Finding::Missing(
            format!("not there: {}", lacking.join(", ")),
            "install all programs of one release in one folder".into(),
        );
    }
    let lists = std::fs::read_dir(&place.layout.cni_conf).into_iter().flatten().flatten();
    let lists = lists.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "conflist")).count();
    Finding::Fine(match lists {
        0 => "shim, pause and network plugins are there; `orlop up` configures the pods' network".into(),
        count => format!(
            "shim, pause and network plugins are there; {count} network configuration(s) in {}",
            place.layout.cni_conf.display()
        ),
    })
}

pub(super) fn disk(place: &Place) -> Finding {
    let folder = place.layout.state.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(folder) {
        Ok(room) if room.f_bavail.saturating_mul(room.f_frsize) < FREE_MIN => Finding::Less(
            format!("{} MiB free below {}", (room.f_bavail * room.f_frsize) >> 20, folder.display()),
            "images need room: make some, or choose another folder by --root".into(),
        ),
        Ok(room) => Finding::Fine(format!(
            "{} GiB free below {}",
            room.f_bavail.saturating_mul(room.f_frsize) >> 30,
            folder.display()
        )),
        Err(error) => {
            Finding::Less(format!("{} can't be looked at: {error}", folder.display()), "check its file system".into())
        }
    }
}

pub(super) fn open_files(_: &Place) -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(maximum) if maximum < FILES_MIN => Finding::Less(
            format!("at most {maximum} open files"),
            format!("raise the limit to {FILES_MIN} or more for many pods (LimitNOFILE= of the service)"),
        ),
        Some(maximum) => Finding::Fine(format!("up to {maximum} open files")),
        None => Finding::Fine("any number of open files".into()),
    }
}
