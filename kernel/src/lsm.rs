//! Security modules of the kernel: which are there, and what the next program of this process runs under.

use std::path::Path;

use crate::procfs::Procfs;

/// Where the kernel says whether AppArmor is switched on.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// Its list of profiles: a line `name (mode)` each.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where SELinux is mounted when a policy is loaded.
const SELINUX: &str = "/sys/fs/selinux";
/// `SELINUX_MAGIC`.
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;

/// Why a profile or a label can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LsmError {
    /// The kernel has no AppArmor, or it is switched off.
    #[error("apparmor profile {0:?} is asked for, and AppArmor is not enabled on this node")]
    NoAppArmor(String),
    /// Nobody has loaded it.
    #[error("apparmor profile {0:?} is not loaded on this node")]
    NotLoaded(String),
    /// The kernel has no SELinux, or no policy is loaded.
    #[error("SELinux label {0:?} is asked for, and SELinux is not enabled on this node")]
    NoSelinux(String),
    /// The kernel refused.
    #[error("write {value:?} to {file}")]
    Refused {
        /// What was written.
        value: String,
        /// The file, below `/proc`.
        file: &'static str,
        /// Why it was refused.
        #[source]
        source: std::io::Error,
    },
}

/// Whether AppArmor is switched on.
#[must_use]
pub fn has_apparmor() -> bool {
    std::fs::read_to_string(APPARMOR).is_ok_and(|text| is_yes(&text))
}

fn is_yes(text: &str) -> bool {
    text.trim_end() == "Y"
}

/// Whether AppArmor knows a profile of this name.
///
/// # Errors
/// When the list can't be read: securityfs is not mounted, or this process may not administer AppArmor.
pub fn has_apparmor_profile(name: &str) -> std::io::Result<bool> {
    Ok(is_listed(&std::fs::read_to_string(PROFILES)?, name))
}

fn is_listed(profiles: &str, name: &str) -> bool {
    profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

/// Whether SELinux has a policy.
#[must_use]
pub fn has_selinux() -> bool {
    rustix::fs::statfs(Path::new(SELINUX)).is_ok_and(|stat| stat.f_type == SELINUX_MAGIC)
}

/// Puts the next program of this thread under an AppArmor profile. `unconfined` on a kernel without AppArmor is what it
/// is anyway.
///
/// # Errors
/// When AppArmor is off, the profile is not loaded or the kernel refuses.
pub fn set_apparmor(procfs: &Procfs, profile: &str) -> Result<(), LsmError> {
    if !has_apparmor() {
        return if profile == "unconfined" { Ok(()) } else { Err(LsmError::NoAppArmor(profile.into())) };
    }
    let value = format!("exec {profile}");
    // The file that AppArmor has for itself; the other belongs to the first module of the kernel's list (before 5.8 to
    // AppArmor when it is there).
    let (own, common) = ("thread-self/attr/apparmor/exec", "thread-self/attr/exec");
    let (file, written) = match procfs.write(own, &value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !procfs.has(own) => {
            (common, procfs.write(common, &value))
        }
        other => (own, other),
    };
    written.map_err(|error| apparmor_error(profile, value, file, error))
}

/// The kernel's word for a profile that it doesn't know is that of a file that doesn't exist.
fn apparmor_error(profile: &str, value: String, file: &'static str, source: std::io::Error) -> LsmError {
    match source.kind() {
        std::io::ErrorKind::NotFound => LsmError::NotLoaded(profile.into()),
        _ => LsmError::Refused { value, file, source },
    }
}

/// Gives the next program of this thread, and the keyrings that this thread makes from now on, an SELinux label.
///
/// # Errors
/// When SELinux is off or the policy doesn't know the label or allow it.
pub fn set_selinux(procfs: &Procfs, label: &str) -> Result<(), LsmError> {
    check_selinux(label)?;
    for file in ["thread-self/attr/keycreate", "thread-self/attr/exec"] {
        procfs.write(file, label).map_err(|source| LsmError::Refused { value: label.into(), file, source })?;
    }
    Ok(())
}

/// Refuses a label on a machine without SELinux.
///
/// # Errors
/// When SELinux is off.
pub fn check_selinux(label: &str) -> Result<(), LsmError> {
    if has_selinux() { Ok(()) } else { Err(LsmError::NoSelinux(label.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_become_ours() {
        for (kind, words) in [
            (rustix::io::Errno::NOENT, "apparmor profile \"p\" is not loaded on this node"),
            (rustix::io::Errno::ACCESS, "write \"exec p\" to thread-self/attr/exec"),
        ] {
            let said = apparmor_error("p", "exec p".into(), "thread-self/attr/exec", kind.into()).to_string();
            assert_eq!(said, words);
        }
        for (text, on) in [("Y\n", true), ("N\n", false), ("", false)] {
            assert_eq!(is_yes(text), on);
        }
    }

    #[test]
    fn profiles_are_found_by_their_whole_name() {
        let list = "nvidia_modprobe (enforce)\nnvidia_modprobe//kmod (enforce)\na (b) (complain)\n";
        for (name, there) in [
            ("nvidia_modprobe", true),
            ("nvidia_modprobe//kmod", true),
            ("a (b)", true),
            ("nvidia", false),
            ("kmod", false),
            ("", false),
        ] {
            assert_eq!(is_listed(list, name), there, "{name}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_refused_when_asked_for() {
        let procfs = Procfs::open().unwrap();
        if !has_apparmor() {
            assert!(matches!(set_apparmor(&procfs, "p"), Err(LsmError::NoAppArmor(_))));
            set_apparmor(&procfs, "unconfined").unwrap();
        } else {
            assert!(matches!(set_apparmor(&procfs, "no-such-profile-of-ours"), Err(LsmError::NotLoaded(_))));
        }
        if !has_selinux() {
            assert!(matches!(set_selinux(&procfs, "u:r:t"), Err(LsmError::NoSelinux(_))));
        }
    }
}
