//! Limits of a cgroup, in the words of the OCI runtime specification.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Limits; what is absent is not set (OCI `linux.resources`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
    /// Huge pages by size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Devices; the first rule normally denies all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
    /// Disks.
    #[serde(rename = "blockIO", default, skip_serializing_if = "Option::is_none")]
    pub block_io: Option<BlockIo>,
    /// Marks of network traffic; v1 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Remote memory: not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdma: Option<serde_json::Value>,
    /// Files of cgroup v2 and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Relative weight as v1 shares, 2 to 262144.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds per period; negative is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// List of processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// List of memory nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mems: Option<String>,
    /// Microseconds that may be saved up for a burst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// 1 lets it run only where nothing else wants to; 0 not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
    /// Microseconds per real-time period; v1 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realtime_runtime: Option<i64>,
    /// Microseconds; v1 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realtime_period: Option<u64>,
}

/// Memory, in bytes; negative is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Limit of memory and swap together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// What is left to it when memory gets scarce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// Memory of the kernel: not supported, no kernel counts it apart any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<i64>,
    /// Memory of TCP in the kernel: not supported.
    #[serde(rename = "kernelTCP", default, skip_serializing_if = "Option::is_none")]
    pub kernel_tcp: Option<i64>,
    /// How readily it is swapped, 0 to 100; v1 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Processes wait when memory runs out; v1 alone.
    #[serde(rename = "disableOOMKiller", default, skip_serializing_if = "Option::is_none")]
    pub disable_oom_killer: Option<bool>,
    /// Cgroups below count too: always so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_hierarchy: Option<bool>,
    /// Refuse a limit that is below what is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_before_update: Option<bool>,
}

/// Disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Relative weight, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Weight beside cgroups below: not supported, no kernel has it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u64>,
    /// Weights by disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read per second, by disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written per second, by disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads per second, by disk.
    #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes per second, by disk.
    #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Relative weight, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Weight beside cgroups below: not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u64>,
}

/// Limit of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// Marks of network traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Class of its packets.
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none")]
    pub class_id: Option<u32>,
    /// Priorities by device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priorities: Vec<NetworkPriority>,
}

/// Priority of what goes out by a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPriority {
    /// The device.
    pub name: String,
    /// The priority.
    pub priority: u32,
}

/// Processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pids {
    /// Limit; zero or negative is none.
    pub limit: i64,
}

/// A limit of huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// Size as the kernel writes it (`2MB`), or as Kubernetes does (`2Mi`, `hugepages-2Mi`).
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

impl HugepageLimit {
    /// The size as it stands in the names of the kernel's files. It becomes part of a path, so nothing else passes.
    ///
    /// # Errors
    /// When it is no size of pages.
    pub(super) fn kernel_size(&self) -> Result<String, String> {
        let size = self.page_size.strip_prefix("hugepages-").unwrap_or(&self.page_size);
        let digits = size.len() - size.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let shift = match &size[digits..] {
            "KB" | "Ki" => 10,
            "MB" | "Mi" => 20,
            "GB" | "Gi" => 30,
            _ => 64,
        };
        let number: u64 = size[..digits].parse().unwrap_or(0);
        let bytes = number.checked_shl(shift).filter(|bytes| bytes >> shift.min(63) == number && *bytes > 0);
        let bytes = bytes.ok_or_else(|| format!("{:?} is no size of pages, such as 2MB", self.page_size))?;
        // The kernel counts in the largest unit that is not above the size.
        let units = [(30, "GB"), (20, "MB"), (10, "KB")];
        let (shift, unit) = units.into_iter().find(|(shift, _)| bytes >> shift > 0).unwrap_or((10, "KB"));
        Ok(format!("{}{unit}", bytes >> shift))
    }
}

/// A rule of the device controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `a`, `c` or `b`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number; none is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number; none is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Of `r`, `w`, `m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

impl DeviceRule {
    /// Refuses what is no rule, before any of a list holds.
    ///
    /// # Errors
    /// Names what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let kind = self.kind.as_deref().unwrap_or("a");
        if !matches!(kind, "a" | "b" | "c" | "u") {
            return Err(format!("device rule: type {kind:?} is not a, b or c"));
        }
        if let Some(letter) =
            self.access.iter().flat_map(|access| access.chars()).find(|letter| !"rwm".contains(*letter))
        {
            return Err(format!("device rule: access {letter:?} is not of r, w, m"));
        }
        // What the kernel's device numbers have room for.
        let fits = |number: Option<i64>, bits: u32| number.is_none_or(|number| number >> bits <= 0);
        if !fits(self.major, 12) || !fits(self.minor, 20) {
            return Err(format!("device rule: {:?}:{:?} is no device number", self.major, self.minor));
        }
        Ok(())
    }

    /// The rule as v1's `devices.allow` and `devices.deny` take it.
    pub(super) fn line(&self) -> String {
        let number = |value: Option<i64>| value.filter(|n| *n >= 0).map_or("*".to_string(), |n| n.to_string());
        let access = self.access.as_deref().unwrap_or("rwm");
        let kind = match self.kind.as_deref().unwrap_or("a") {
            "u" => "c",
            kind => kind,
        };
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// The v2 weight (1 to 10000) of v1 shares, by the curve of opencontainers/cgroups: 1024 shares are weight 100.
#[must_use]
pub fn shares_to_weight(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(shares_to_weight(shares), weight);
        }
    }

    #[test]
    fn sizes_of_pages_in_every_spelling() {
        for (written, kernel) in [
            ("2MB", Some("2MB")),
            ("2Mi", Some("2MB")),
            ("hugepages-1Gi", Some("1GB")),
            ("2048Ki", Some("2MB")),
            ("64KB", Some("64KB")),
            ("1024MB", Some("1GB")),
            ("", None),
            ("MB", None),
            ("0MB", None),
            ("2", None),
            ("2MB/../../x", None),
            ("99999999999999999999GB", None),
            ("99999999999999GB", None),
        ] {
            let limit = HugepageLimit { page_size: written.into(), limit: 0 };
            assert_eq!(limit.kernel_size().ok().as_deref(), kernel, "{written}");
        }
    }

    #[test]
    fn device_rules_are_checked_and_written() {
        let rule = |kind: &str, major, minor, access: &str| DeviceRule {
            allow: true,
            kind: Some(kind.into()),
            major,
            minor,
            access: Some(access.into()),
        };
        for (rule, line) in [
            (rule("c", Some(1), Some(3), "rw"), "c 1:3 rw"),
            (rule("u", Some(136), None, "rwm"), "c 136:* rwm"),
            (rule("b", None, Some(-1), "m"), "b *:* m"),
            (DeviceRule::default(), "a *:* rwm"),
        ] {
            rule.check().unwrap();
            assert_eq!(rule.line(), line);
        }
        for (rule, words) in [
            (rule("p", None, None, "r"), "\"p\""),
            (rule("c", None, None, "rx"), "'x'"),
            (rule("c", Some(1 << 12), None, "r"), "4096"),
            (rule("c", Some(1), Some(1 << 20), "r"), "1048576"),
        ] {
            let said = rule.check().expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }
}
