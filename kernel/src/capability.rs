//! Capability sets by name and number.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit per number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Every capability that this crate knows.
    pub const ALL: Capabilities = Capabilities((1 << NAMES.len()) - 1);

    /// The set of these names, with or without `CAP_`, in any case.
    ///
    /// # Errors
    /// Gives back the first name that is no capability.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Capabilities, String> {
        names.into_iter().try_fold(Capabilities::default(), |set, name| {
            let number = number(name).ok_or_else(|| name.to_string())?;
            Ok(Capabilities(set.0 | 1 << number))
        })
    }

    /// Names of the set, with `CAP_`.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        (0..NAMES.len())
            .filter(|number| self.0 & (1 << number) != 0)
            .map(|number| format!("CAP_{}", NAMES[number]))
            .collect()
    }

    /// Whether the capability of this name is in the set.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|number| self.0 & (1 << number) != 0)
    }

    fn set(self) -> CapabilitySet {
        CapabilitySet::from_bits_retain(self.0)
    }
}

/// The number of a capability's name.
fn number(name: &str) -> Option<usize> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare)
}

/// What this process itself may do.
///
/// # Errors
/// When the kernel refuses.
pub fn permitted() -> std::io::Result<Capabilities> {
    Ok(Capabilities(rustix::thread::capabilities(None)?.permitted.bits()))
}

/// Removes from the bounding set what is not in `keep`. Needs SETPCAP, so it comes before the identity changes.
///
/// # Errors
/// When the kernel refuses.
pub fn bound(keep: Capabilities) -> std::io::Result<()> {
    for number in 0..u32::BITS * 2 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if keep.0 & (1 << number) == 0 => rustix::thread::remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // The first number that the kernel doesn't know ends the list.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// Sets effective and permitted to `set`, inheritable to `ambient` alone, and the ambient set. Capabilities that this
/// process doesn't have are left out: a container never gets more than its runtime.
///
/// # Errors
/// When the kernel refuses.
pub fn apply(set: Capabilities, ambient: Capabilities) -> std::io::Result<()> {
    apply_inheritable(set, ambient, ambient)
}

/// The same with an inheritable set that has more than the ambient one.
///
/// # Errors
/// When the kernel refuses.
pub fn apply_inheritable(set: Capabilities, inheritable: Capabilities, ambient: Capabilities) -> std::io::Result<()> {
    let ours = permitted()?;
    let set = Capabilities(set.0 & ours.0);
    let ambient = Capabilities(ambient.0 & set.0);
    let inheritable = Capabilities(inheritable.0 & ours.0 | ambient.0);
    let sets = CapabilitySets { effective: set.set(), permitted: set.set(), inheritable: inheritable.set() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        if ambient.0 & (1 << number) != 0 {
            rustix::thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_every_spelling() {
        let set = Capabilities::from_names(["CAP_CHOWN", "net_raw", "Cap_Checkpoint_Restore"]).unwrap();
        assert_eq!(set.0, 1 | 1 << 13 | 1 << 40);
        assert_eq!(set.names(), ["CAP_CHOWN", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE"]);
        assert_eq!(Capabilities::from_names(["FLY"]), Err("FLY".to_string()));
    }
}
