//! Limits as properties of a unit.
//!
//! What systemd has no property for (huge pages, devices, exact shares of a processor) is written into the cgroup by
//! whoever runs the container, and left alone by systemd.

use orlop_kernel::cgroup::{Cpu, Memory, Resources, shares_to_weight};

/// What a property says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number; the largest is "no limit".
    Number(u64),
    /// Process numbers.
    Processes(Vec<u32>),
    /// A set as a mask of bits, lowest byte first.
    Set(Vec<u8>),
    /// Words.
    Text(String),
}

/// A property by systemd's name on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub value: Value,
}

/// "No limit" (systemd's `infinity`).
const NO_LIMIT: u64 = u64::MAX;
/// Microseconds of the period where none is given (the kernel's).
const PERIOD: u64 = 100_000;
/// Periods that systemd takes, in microseconds.
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// systemd keeps shares of a processor in whole percent: microseconds per second.
const PERCENT: u64 = 10_000;
/// The largest number of a processor or memory node that is believed.
const SET_MAX: usize = 8191;

fn property(name: &'static str, value: Value) -> Property {
    Property { name, value }
}

/// What a scope is told at its birth beside its limits. Everything below its cgroup is ours, and it is forgotten as soon as
/// it has ended, however it did.
#[must_use]
pub fn of_scope(slice: &str, description: &str, pid: u32, resources: &Resources) -> Vec<Property> {
    let mut all = unit(description);
    all.push(property("Slice", Value::Text(slice.into())));
    all.push(property("Delegate", Value::Flag(true)));
    all.push(property("PIDs", Value::Processes(vec![pid])));
    all.extend(limits_of_new(resources));
    all
}

/// What a slice is told at its birth.
#[must_use]
pub fn of_slice(description: &str, resources: &Resources) -> Vec<Property> {
    let mut all = unit(description);
    all.extend(limits_of_new(resources));
    all
}

fn unit(description: &str) -> Vec<Property> {
    let counted = ["CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"];
    let mut all = vec![
        property("Description", Value::Text(description.into())),
        // Its end is not the machine's to order.
        property("DefaultDependencies", Value::Flag(false)),
        property("CollectMode", Value::Text("inactive-or-failed".into())),
    ];
    all.extend(counted.map(|name| property(name, Value::Flag(true))));
    all
}

/// Limits of a unit that is new: systemd's own default for processes is none of the pod's.
fn limits_of_new(resources: &Resources) -> Vec<Property> {
    let mut all = limits(resources);
    if !all.iter().any(|property| property.name == "TasksMax") {
        all.push(property("TasksMax", Value::Number(NO_LIMIT)));
    }
    all
}

/// The limits that are given, as properties; what is not given is not named and stays as it is.
#[must_use]
pub fn limits(resources: &Resources) -> Vec<Property> {
    let mut all = Vec::new();
    if let Some(cpu) = &resources.cpu {
        all.extend(of_cpu(cpu));
    }
    if let Some(memory) = &resources.memory {
        all.extend(of_memory(memory));
    }
    if let Some(pids) = &resources.pids {
        all.push(property("TasksMax", Value::Number(limit(pids.limit))));
    }
    for (file, text) in &resources.unified {
        for property in of_file(file, text.trim()) {
            // What is named by its file counts, as in the cgroup.
            all.retain(|other| other.name != property.name);
            all.push(property);
        }
    }
    all
}

fn of_cpu(cpu: &Cpu) -> Vec<Property> {
    let mut all = Vec::new();
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        all.push(property("CPUWeight", Value::Number(shares_to_weight(shares))));
    }
    if cpu.quota.is_some_and(|quota| quota != 0) || cpu.period.is_some_and(|period| period > 0) {
        let quota = cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0);
        all.extend(of_quota(quota, cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD)));
    }
    for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
        let set = list.as_deref().filter(|list| !list.is_empty()).and_then(mask);
        all.extend(set.map(|mask| property(name, Value::Set(mask))));
    }
    all
}

/// Time of a processor per second, rounded up to what systemd can keep in its files, so that a unit that is read again
/// never has less than it was given.
fn of_quota(quota: Option<u64>, period: u64) -> Vec<Property> {
    let per_second =
        quota.map_or(NO_LIMIT, |quota| (quota.saturating_mul(1_000_000) / period).div_ceil(PERCENT) * PERCENT);
    let mut all = vec![property("CPUQuotaPerSecUSec", Value::Number(per_second))];
    if PERIODS.contains(&period) {
        all.push(property("CPUQuotaPeriodUSec", Value::Number(period)));
    }
    all
}

fn of_memory(memory: &Memory) -> Vec<Property> {
    let mut all = Vec::new();
    if let Some(bytes) = memory.limit.filter(|bytes| *bytes != 0) {
        all.push(property("MemoryMax", Value::Number(limit(bytes))));
    }
    if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
        all.push(property("MemoryLow", Value::Number(limit(bytes))));
    }
    // The limit of both together says nothing of swap where that of memory is not known.
    match (memory.swap.filter(|swap| *swap != 0), memory.limit.filter(|limit| *limit != 0)) {
        (Some(swap), _) if swap < 0 => all.push(property("MemorySwapMax", Value::Number(NO_LIMIT))),
        (Some(swap), Some(limit)) => {
            all.push(property("MemorySwapMax", Value::Number(u64::try_from(swap - limit).unwrap_or(0))));
        }
        _ => {}
    }
    all
}

/// The properties of a file of cgroup v2; none for what systemd has no property for, or what the kernel will refuse.
fn of_file(file: &str, text: &str) -> Vec<Property> {
    let number = |name| {
        let value = if text == "max" { Some(NO_LIMIT) } else { text.parse().ok() };
        value.map(|value| vec![property(name, Value::Number(value))]).unwrap_or_default()
    };
    let set = |name| mask(text).map(|mask| vec![property(name, Value::Set(mask))]).unwrap_or_default();
    match file {
        "cpu.weight" => number("CPUWeight"),
        "memory.min" => number("MemoryMin"),
        "memory.low" => number("MemoryLow"),
        "memory.high" => number("MemoryHigh"),
        "memory.max" => number("MemoryMax"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpuset.cpus" => set("AllowedCPUs"),
        "cpuset.mems" => set("AllowedMemoryNodes"),
        "cpu.max" => {
            let (quota, period) = text.split_once(' ').unwrap_or((text, ""));
            let period = period.trim().parse().ok().filter(|period| *period > 0).unwrap_or(PERIOD);
            match quota {
                "max" => of_quota(None, period),
                quota => quota.parse().map(|quota| of_quota(Some(quota), period)).unwrap_or_default(),
            }
        }
        _ => Vec::new(),
    }
}

fn limit(value: i64) -> u64 {
    u64::try_from(value).ok().filter(|value| *value > 0).unwrap_or(NO_LIMIT)
}

/// A list such as `0-2,5` as a mask of bits; none when it is no list.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > SET_MAX {
            return None;
        }
        if mask.len() <= last / 8 {
            mask.resize(last / 8 + 1, 0);
        }
        (first..=last).for_each(|bit| mask[bit / 8] |= 1 << (bit % 8));
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use orlop_kernel::cgroup::Pids;

    use super::*;

    fn number(name: &'static str, value: u64) -> Property {
        property(name, Value::Number(value))
    }

    fn cpu(shares: Option<u64>, quota: Option<i64>, period: Option<u64>) -> Resources {
        Resources { cpu: Some(Cpu { shares, quota, period, ..Cpu::default() }), ..Resources::default() }
    }

    fn memory(limit: Option<i64>, swap: Option<i64>) -> Resources {
        Resources { memory: Some(Memory { limit, swap, ..Memory::default() }), ..Resources::default() }
    }

    #[test]
    fn limits_become_properties() {
        let pids = |limit| Resources { pids: Some(Pids { limit }), ..Resources::default() };
        let sets = Cpu { cpus: Some("0-2,9".into()), mems: Some("0".into()), ..Cpu::default() };
        let file = |name: &str, text: &str| Resources {
            unified: [(name.to_string(), text.to_string())].into(),
            ..memory(Some(5), None)
        };
        for (resources, expected) in [
            (Resources::default(), vec![]),
            (cpu(Some(1024), None, None), vec![number("CPUWeight", 100)]),
            (cpu(Some(0), Some(0), Some(0)), vec![]),
            (
                cpu(None, Some(50_000), Some(100_000)),
                vec![number("CPUQuotaPerSecUSec", 500_000), number("CPUQuotaPeriodUSec", 100_000)],
            ),
            (
                cpu(None, Some(12_345), None),
                vec![number("CPUQuotaPerSecUSec", 130_000), number("CPUQuotaPeriodUSec", 100_000)],
            ),
            (cpu(None, Some(500), Some(500)), vec![number("CPUQuotaPerSecUSec", 1_000_000)]),
            (
                cpu(None, Some(-1), Some(100_000)),
                vec![number("CPUQuotaPerSecUSec", u64::MAX), number("CPUQuotaPeriodUSec", 100_000)],
            ),
            (memory(Some(1 << 20), None), vec![number("MemoryMax", 1 << 20)]),
            (memory(Some(-1), Some(-1)), vec![number("MemoryMax", u64::MAX), number("MemorySwapMax", u64::MAX)]),
            (memory(Some(100), Some(150)), vec![number("MemoryMax", 100), number("MemorySwapMax", 50)]),
            (memory(Some(100), Some(100)), vec![number("MemoryMax", 100), number("MemorySwapMax", 0)]),
            (memory(None, Some(100)), vec![]),
            (pids(7), vec![number("TasksMax", 7)]),
            (pids(-1), vec![number("TasksMax", u64::MAX)]),
            (
                Resources { cpu: Some(sets), ..Resources::default() },
                vec![
                    property("AllowedCPUs", Value::Set(vec![0b111, 0b10])),
                    property("AllowedMemoryNodes", Value::Set(vec![1])),
                ],
            ),
            (file("memory.high", "9"), vec![number("MemoryMax", 5), number("MemoryHigh", 9)]),
            (file("memory.max", "max"), vec![number("MemoryMax", u64::MAX)]),
            (file("memory.max", "plenty"), vec![number("MemoryMax", 5)]),
            (
                file("cpu.max", "20000 50000"),
                vec![
                    number("MemoryMax", 5),
                    number("CPUQuotaPerSecUSec", 400_000),
                    number("CPUQuotaPeriodUSec", 50_000),
                ],
            ),
            (file("hugetlb.2MB.max", "0"), vec![number("MemoryMax", 5)]),
        ] {
            assert_eq!(limits(&resources), expected, "{resources:?}");
        }
    }

    #[test]
    fn a_new_unit_has_no_limits_but_its_own() {
        let all = of_scope("a.slice", "container x", 12, &memory(Some(5), None));
        for expected in [
            property("Slice", Value::Text("a.slice".into())),
            property("PIDs", Value::Processes(vec![12])),
            property("Delegate", Value::Flag(true)),
            property("CollectMode", Value::Text("inactive-or-failed".into())),
            number("MemoryMax", 5),
            number("TasksMax", u64::MAX),
        ] {
            assert!(all.contains(&expected), "{expected:?}");
        }
        let slice = of_slice("pod x", &Resources { pids: Some(Pids { limit: 3 }), ..Resources::default() });
        assert!(slice.contains(&number("TasksMax", 3)) && !slice.iter().any(|property| property.name == "PIDs"));
    }

    #[test]
    fn lists_become_masks() {
        for (list, bits) in [
            ("0", Some(vec![1])),
            ("1,3", Some(vec![0b1010])),
            ("7-8", Some(vec![0x80, 1])),
            ("", None),
            ("a", None),
            ("3-1", None),
            ("99999", None),
            ("-1", None),
        ] {
            assert_eq!(mask(list), bits, "{list}");
        }
    }
}
