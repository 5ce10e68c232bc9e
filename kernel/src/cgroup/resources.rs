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
