//! What the built-in runtime refuses of a specification, and how it names that.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::{Config, Device, Hooks, Linux, Mount, Process};
use crate::confine::resource;
use crate::user_namespace::check_mappings;

/// Bytes of a label or of a profile's name.
const LABEL_BYTES_MAX: usize = 4096;

impl Config {
    /// Refuses what the built-in runtime does not do for a container of a pod, instead of leaving it out in silence.
    ///
    /// # Errors
    /// The name of the field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if !self.domainname.is_empty() {
            return Err("domainname: the built-in runtime sets none".into());
        }
        if self.process.args.is_empty() {
            return Err("process.args: no command specified".into());
        }
        if let Some(name) = self.linux.sysctl.keys().next() {
            return Err(format!("linux.sysctl: {name}: sysctls are the pod's; the sandbox sets them"));
        }
        let domain = self.linux.personality.as_ref();
        if let Some(other) = domain.filter(|domain| domain.domain != "LINUX" || !domain.flags.is_empty()) {
            return Err(format!("linux.personality: {:?}: the built-in runtime has LINUX alone", other.domain));
        }
        self.check_common(&["pid", "network", "ipc", "uts", "mount", "cgroup", "user"])?;
        let linux = &self.linux;
        if let Some(entry) = self.mounts.iter().find(|entry| {
            let mapped = !entry.uid_mappings.is_empty() || !entry.gid_mappings.is_empty();
            mapped && (entry.uid_mappings != linux.uid_mappings || entry.gid_mappings != linux.gid_mappings)
        }) {
            let name = &entry.destination;
            return Err(format!("mounts: {name:?}: uidMappings and gidMappings must be those of the container"));
        }
        Ok(())
    }

    /// Refuses what it does not do for a container that stands alone.
    ///
    /// # Errors
    /// The name of the field and what is wrong with it.
    pub fn check_alone(&self) -> Result<(), String> {
        if !self.oci_version.starts_with("1.") {
            return Err(format!("ociVersion: {:?} is not a version 1 of the specification", self.oci_version));
        }
        self.check_common(&["pid", "network", "ipc", "uts", "mount", "cgroup", "user"])?;
        super::alone::check(self)
    }

    fn check_common(&self, kinds: &[&str]) -> Result<(), String> {
        check_process(&self.process)?;
        check_linux(&self.linux, kinds)?;
        refuse(&[("vm", self.vm.is_some())])?;
        self.hooks.iter().try_for_each(Hooks::check)?;
        self.mounts.iter().try_for_each(|entry| check_mount(entry, &self.linux))
    }
}

pub(super) fn check_process(process: &Process) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for limit in &process.rlimits {
        let name = format!("process.rlimits: {}", limit.kind);
        resource(&limit.kind).ok_or_else(|| format!("{name} is no limit"))?;
        if limit.soft > limit.hard {
            return Err(format!("{name}: soft {} is above hard {}", limit.soft, limit.hard));
        }
        if !seen.insert(&limit.kind) {
            return Err(format!("{name} is there twice"));
        }
    }
    check_label("process.apparmorProfile", process.apparmor_profile.as_deref())?;
    check_selinux("process.selinuxLabel", process.selinux_label.as_deref())?;
    refuse(&[
        ("process.scheduler", process.scheduler.is_some()),
        ("process.ioPriority", process.io_priority.is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
    ])
}

fn check_linux(linux: &Linux, kinds: &[&str]) -> Result<(), String> {
    if let Some(other) = linux.namespaces.iter().find(|namespace| !kinds.contains(&namespace.kind.as_str())) {
        return Err(format!("linux.namespaces: {:?} is not one of {}", other.kind, kinds.join(", ")));
    }
    let listed = linux.namespaces.iter().any(|namespace| namespace.kind == "user" && namespace.path.is_none());
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if listed && !mapped {
        return Err("linux.namespaces: a user namespace needs linux.uidMappings and linux.gidMappings".into());
    }
    if mapped {
        check_mappings("linux.uidMappings", &linux.uid_mappings)?;
        check_mappings("linux.gidMappings", &linux.gid_mappings)?;
    }
    linux.devices.iter().try_for_each(check_device)?;
    check_selinux("linux.mountLabel", linux.mount_label.as_deref())?;
    if let Some(wanted) = &linux.rootfs_propagation {
        let plain = wanted.strip_prefix('r').unwrap_or(wanted);
        let known = matches!(plain, "private" | "slave" | "shared" | "unbindable");
        if !known && !wanted.is_empty() {
            return Err(format!("linux.rootfsPropagation: {wanted:?} is not private, slave, shared or unbindable"));
        }
    }
    refuse(&[
        ("linux.intelRdt", linux.intel_rdt.is_some()),
        ("linux.timeOffsets", linux.time_offsets.is_some()),
        ("linux.netDevices", linux.net_devices.is_some()),
        ("linux.memoryPolicy", linux.memory_policy.is_some()),
        ("linux.seccomp.listenerPath", linux.seccomp.as_ref().is_some_and(|profile| profile.listener_path.is_some())),
    ])
}

fn check_device(device: &Device) -> Result<(), String> {
    let name = format!("linux.devices: {:?}", device.path);
    if !is_plain(&device.path) || device.path.file_name().is_none() {
        return Err(format!("{name}: must be an absolute path without .."));
    }
    if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
        return Err(format!("{name}: kind {:?} is not c, b or p", device.kind));
    }
    if device.kind != "p" && device.kind != "b" && device.major == 0 && device.minor == 0 {
        return Err(format!("{name}: 0:0 is no device; overlayfs takes it for a deleted file"));
    }
    Ok(())
}

fn check_mount(entry: &Mount, linux: &Linux) -> Result<(), String> {
    let name = format!("mounts: {:?}", entry.destination);
    if !entry.destination.is_absolute() {
        return Err(format!("{name}: destination must be an absolute path"));
    }
    let mapped = !entry.uid_mappings.is_empty() || !entry.gid_mappings.is_empty();
    if mapped && !entry.is_bind() {
        return Err(format!("{name}: uidMappings and gidMappings are for bind mounts alone"));
    }
    if !linux.uid_mappings.is_empty() && entry.options.iter().any(|option| option == "rshared") {
        return Err(format!("{name}: nothing can be shared out of a user namespace (option rshared)"));
    }
    Ok(())
}

impl Mount {
    /// Whether it shows a folder or file of the machine.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

/// Whether a path is absolute and climbs nowhere.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

fn check_label(field: &str, label: Option<&str>) -> Result<(), String> {
    match label {
        Some("") => Err(format!("{field}: is empty; leave it out")),
        Some(label) if label.len() > LABEL_BYTES_MAX => Err(format!("{field}: is longer than {LABEL_BYTES_MAX} bytes")),
        Some(label) if label.chars().any(char::is_control) => {
            Err(format!("{field}: {label:?} holds control characters"))
        }
        _ => Ok(()),
    }
}

fn check_selinux(field: &str, label: Option<&str>) -> Result<(), String> {
    check_label(field, label)?;
    let whole = |label: &str| label.split(':').count() >= 3 && label.split(':').take(3).all(|part| !part.is_empty());
    match label.filter(|label| !whole(label)) {
        Some(label) => Err(format!("{field}: {label:?} is not user:role:type, with a level perhaps")),
        None => Ok(()),
    }
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), String> {
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(format!("{field}: not supported by the built-in runtime; leave it out")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `check` says of a small specification with these parts.
    fn check(process: &str, linux: &str, mounts: &str) -> Result<(), String> {
        let text = format!(
            r#"{{"process": {{"args": ["x"]{process}}}, "linux": {{"cgroupsPath": "/x"{linux}}}, "mounts": [{mounts}]}}"#
        );
        serde_json::from_str::<Config>(&text).unwrap_or_else(|error| panic!("{text}: {error}")).check()
    }

    #[test]
    fn what_can_not_be_done_is_refused_by_name() {
        let maps = r#", "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]"#;
        for (process, linux, mounts, words) in [
            (r#", "scheduler": {"policy": "SCHED_FIFO"}"#, "", "", "process.scheduler"),
            (r#", "ioPriority": {}"#, "", "", "process.ioPriority"),
            (r#", "execCPUAffinity": {}"#, "", "", "process.execCPUAffinity"),
            (r#", "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]"#, "", "", "RLIMIT_X is no limit"),
            (r#", "rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]"#, "", "", "soft 2 is above hard 1"),
            (r#", "apparmorProfile": """#, "", "", "process.apparmorProfile"),
            (r#", "apparmorProfile": "a\nb""#, "", "", "control characters"),
            (r#", "selinuxLabel": "nothing""#, "", "", "process.selinuxLabel"),
            ("", r#", "mountLabel": "a::b""#, "", "linux.mountLabel"),
            ("", r#", "namespaces": [{"type": "time"}]"#, "", "\"time\""),
            ("", r#", "namespaces": [{"type": "user"}]"#, "", "linux.uidMappings"),
            ("", r#", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]"#, "", "linux.gidMappings"),
            ("", r#", "sysctl": {"net.core.somaxconn": "1"}"#, "", "linux.sysctl"),
            ("", r#", "personality": {"domain": "LINUX32"}"#, "", "LINUX32"),
            ("", r#", "intelRdt": {}"#, "", "linux.intelRdt"),
            ("", r#", "timeOffsets": {}"#, "", "linux.timeOffsets"),
            ("", r#", "netDevices": {"eth0": {}}"#, "", "linux.netDevices"),
            ("", r#", "rootfsPropagation": "upward""#, "", "linux.rootfsPropagation"),
            ("", r#", "devices": [{"path": "/dev/../x", "type": "c", "major": 1}]"#, "", "/dev/../x"),
            ("", r#", "devices": [{"path": "/dev/x", "type": "z", "major": 1}]"#, "", "\"z\""),
            ("", r#", "devices": [{"path": "/dev/x", "type": "c"}]"#, "", "0:0"),
            ("", "", r#"{"destination": "x", "type": "tmpfs"}"#, "absolute"),
            ("", maps, r#"{"destination": "/x", "type": "bind", "options": ["rshared"]}"#, "rshared"),
            (
                "",
                maps,
                r#"{"destination": "/x", "type": "bind", "uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}]}"#,
                "those of the container",
            ),
        ] {
            let said = check(process, linux, mounts).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
        for (process, linux) in [
            (r#", "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}], "selinuxLabel": "u:r:t:s0:c1,c2""#, maps),
            (r#", "apparmorProfile": "orlop-default""#, r#", "personality": {"domain": "LINUX"}"#),
            ("", r#", "rootfsPropagation": "rslave", "devices": [{"path": "/dev/snd/x", "type": "p"}]"#),
        ] {
            check(process, linux, "").unwrap();
        }
    }
}
