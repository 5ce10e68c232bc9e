//! Devices of a container: those that all have, and those of the machine that are handed on.

use orlop_container::config::Device;
use orlop_container::devices;
use orlop_kernel::cgroup::DeviceRule;

use crate::{SpecError, wrong};

/// A device of the machine that a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostDevice {
    /// The node in the container.
    pub node: Device,
    /// What may be done with it: letters of `rwm`.
    pub access: String,
}

/// Checks what may be done with a device; nothing said means everything.
///
/// # Errors
/// Names the field.
pub fn check_access(field: &str, access: &str) -> Result<String, SpecError> {
    let plain = access.len() <= 3 && access.chars().all(|letter| "rwm".contains(letter));
    match access {
        "" => Ok("rwm".into()),
        _ if plain => Ok(access.into()),
        _ => Err(wrong(field, format!("{access:?} must be letters of \"rwm\" (read, write, make)"))),
    }
}

/// Nodes below `/dev`: the usual ones, which nothing takes the place of, and those of the machine.
pub(crate) fn nodes(host: &[HostDevice]) -> Vec<Device> {
    let mut all = Vec::from(devices::usual());
    for device in host {
        if all.iter().all(|known| known.path != device.node.path) {
            all.push(device.node.clone());
        }
    }
    all
}

/// What the devices controller allows: everything to a privileged container, else making any node, the usual devices,
/// terminals, and those of the machine as they were asked for.
pub(crate) fn rules(privileged: bool, host: &[HostDevice]) -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: Some(kind.into()),
        major,
        minor,
        access: Some(access.into()),
    };
    if privileged {
        return vec![rule(true, "a", None, None, "rwm")];
    }
    let number = |value: u32| Some(i64::from(value));
    let mut rules = vec![rule(false, "a", None, None, "rwm")];
    rules.extend(["c", "b"].map(|kind| rule(true, kind, None, None, "m")));
    rules
        .extend(devices::usual().map(|usual| rule(true, &usual.kind, number(usual.major), number(usual.minor), "rwm")));
    // The terminals: ptmx and everything on devpts.
    rules.push(rule(true, "c", Some(5), Some(2), "rwm"));
    rules.push(rule(true, "c", Some(136), None, "rwm"));
    // A named pipe is no device to the controller.
    for HostDevice { node, access } in host.iter().filter(|device| device.node.kind != "p") {
        rules.push(rule(true, &node.kind, number(node.major), number(node.minor), access));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_machine_is_allowed_as_asked() {
        let node = Device { path: "/dev/fuse".into(), kind: "c".into(), major: 10, minor: 229, ..Device::default() };
        let null = Device { path: "/dev/null".into(), kind: "b".into(), major: 8, minor: 0, ..Device::default() };
        let host =
            [HostDevice { node: node.clone(), access: "rw".into() }, HostDevice { node: null, access: "rwm".into() }];
        let nodes = nodes(&host);
        assert_eq!(nodes.len(), devices::usual().len() + 1, "the usual ones stay what they are");
        assert_eq!(nodes.last(), Some(&node));
        let allowed = rules(false, &host[..1]);
        let last = allowed.last().unwrap();
        assert_eq!((last.major, last.minor, last.access.as_deref()), (Some(10), Some(229), Some("rw")));
        assert_eq!(rules(true, &host).len(), 1);
    }

    #[test]
    fn access_is_letters() {
        for (access, good) in [("", true), ("r", true), ("mrw", true), ("x", false), ("rwmr", false)] {
            assert_eq!(check_access("f", access).is_ok(), good, "{access:?}");
        }
    }
}
