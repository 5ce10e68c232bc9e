//! What the kernel and the distribution say of the machine.

use std::path::Path;

/// The machine's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemFacts {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// UUID of the firmware, or the machine id.
    pub system_uuid: String,
    /// New with each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// Architecture in Go's words (`amd64`).
    pub architecture: String,
    /// Bytes of swap; none where it can't be read.
    pub swap_bytes: Option<i64>,
}

/// Reads the machine's identity below `root` (`/` outside of tests). What can't be read stays empty.
pub fn read_system(root: &Path) -> SystemFacts {
    let text = |paths: &[&str]| {
        paths
            .iter()
            .filter_map(|path| std::fs::read_to_string(root.join(path)).ok())
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty())
            .unwrap_or_default()
    };
    let machine_id = text(&["etc/machine-id", "var/lib/dbus/machine-id"]);
    let uuid = text(&["sys/class/dmi/id/product_uuid", "proc/device-tree/vm,uuid"]);
    let uname = rustix::system::uname();
    SystemFacts {
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: text(&["proc/sys/kernel/random/boot_id"]),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        os_image: os_image(&text(&["etc/os-release", "usr/lib/os-release"])),
        architecture: go_architecture(&uname.machine().to_string_lossy()).to_owned(),
        swap_bytes: swap_bytes(&text(&["proc/meminfo"])),
    }
}

fn os_image(os_release: &str) -> String {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned())
}

fn swap_bytes(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

fn go_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i586" | "i686" => "386",
        "ppc64le" | "s390x" | "riscv64" => machine,
        machine if machine.starts_with("armv") => "arm",
        machine => machine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_system_are_read() {
        for (text, want) in [
            ("NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "Debian GNU/Linux 12"),
            ("NAME='Alpine'\n", "Alpine"),
            ("", "Linux"),
        ] {
            assert_eq!(os_image(text), want);
        }
        assert_eq!(swap_bytes("MemTotal: 1 kB\nSwapTotal:       2 kB\n"), Some(2048));
        assert_eq!(swap_bytes("MemTotal: 1 kB\n"), None);
        assert_eq!((go_architecture("x86_64"), go_architecture("armv7l")), ("amd64", "arm"));
    }

    #[test]
    fn this_machine_is_somebody() {
        let system = read_system(Path::new("/"));
        assert!(!system.kernel_version.is_empty() && !system.boot_id.is_empty(), "{system:?}");
    }
}
