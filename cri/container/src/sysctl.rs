//! Which sysctls belong to a container's namespaces, and how they are set.

use orlop_kernel::procfs::Procfs;

use crate::stage::{StageError, Step};

/// Bytes of a sysctl's value: the kernel takes a page at most.
const VALUE_BYTES_MAX: usize = 4095;

/// Namespaces that are the container's own: what is set in them changes nothing of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) network: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
}

/// Refuses a sysctl that would change the machine, and what is none.
pub(crate) fn check(own: Own, name: &str, value: &str) -> Result<(), String> {
    const IPC: [&str; 4] = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
    let file = file(name);
    let letters = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
    // A part that climbs would turn a name of the container's into one of the machine's.
    if file.split('/').any(|part| matches!(part, "" | "." | "..") || !letters(part)) {
        return Err("it is no name of a sysctl".into());
    }
    if value.len() > VALUE_BYTES_MAX || value.chars().any(|letter| letter.is_control() && letter != '\t') {
        return Err(format!("its value must be one line of at most {VALUE_BYTES_MAX} bytes"));
    }
    let owned = if file.starts_with("net/") {
        own.network
    } else if IPC.iter().any(|prefix| file.starts_with(prefix)) {
        own.ipc
    } else if file == "kernel/domainname" {
        own.uts
    } else {
        return Err("it belongs to no namespace of a container".into());
    };
    if owned { Ok(()) } else { Err("the container shares that namespace with the machine".into()) }
}

/// Whether only the root of the user namespace that owns it may set one: what belongs to IPC. The machine's root has a say
/// in all others.
pub(crate) fn is_owners(name: &str) -> bool {
    let file = file(name);
    !file.starts_with("net/") && file != "kernel/domainname"
}

/// Sets one, in the namespaces of this process.
pub(crate) fn set(procfs: &Procfs, name: &str, value: &str) -> Result<(), StageError> {
    procfs.write(&format!("sys/{}", file(name)), value).step(format!("set the sysctl {name} to {value:?}"))
}

/// The file of a sysctl below `/proc/sys`: dots part its name, and a slash stands for a dot (`sysctl(8)`).
pub(crate) fn file(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name[at..].chars().next());
    if first == Some('/') {
        return name.to_string();
    }
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_in_the_container() {
        assert_eq!(file("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(file("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        let own = Own { network: true, ipc: true, uts: true };
        let machine = Own { network: false, ipc: false, uts: false };
        for (own, name, value, good) in [
            (own, "net.core.somaxconn", "1", true),
            (own, "net.ipv4.ping_group_range", "0 2147483647", true),
            (own, "net.ipv4.ip_local_port_range", "1024\t65000", true),
            (own, "kernel.shm_rmid_forced", "1", true),
            (own, "kernel.domainname", "d", true),
            (own, "fs.mqueue.msg_max", "20", true),
            (machine, "net.core.somaxconn", "1", false),
            (machine, "kernel.domainname", "d", false),
            (own, "kernel.hostname", "h", false),
            (own, "kernel.core_pattern", "|/x", false),
            (own, "net/../kernel/core_pattern", "|/x", false),
            (own, "net.core./.somaxconn", "1", false),
            (own, "net/./core/somaxconn", "1", false),
            (own, "net.core.x y", "1", false),
            (own, "net.core.somaxconn", "1\nkernel.core_pattern=|/x", false),
            (own, "net.core.somaxconn", "1\0", false),
            (own, "net.core.somaxconn", &"1".repeat(5000), false),
        ] {
            let said = check(own, name, value);
            assert_eq!(said.is_ok(), good, "{name}={value:?}: {said:?}");
        }
    }
}
