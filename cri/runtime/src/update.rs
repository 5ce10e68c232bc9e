//! `pause`, `resume`, `update`, `events`: limits and use of what a container has.

use std::time::Duration;

use orlop_container::stage::Step;
use orlop_kernel::cgroup::{BlockIo, Cgroups, Cpu, Memory, Pids, Resources};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::failure::{Failure, Outcome};
use crate::store::{Status, Store};

/// `pause`.
pub fn pause(store: &Store, arguments: &Arguments) -> Outcome {
    freeze(store, arguments, true)
}

/// `resume`.
pub fn resume(store: &Store, arguments: &Arguments) -> Outcome {
    freeze(store, arguments, false)
}

fn freeze(store: &Store, arguments: &Arguments, frozen: bool) -> Outcome {
    let id = arguments.id()?;
    let place = store.find(id)?;
    let _held = place.lock(id)?;
    let (record, status) = place.look(id)?;
    let allowed = if frozen { matches!(status, Status::Running | Status::Created) } else { status == Status::Paused };
    if !allowed {
        let command = if frozen { "cannot pause" } else { "cannot resume" };
        return Err(Failure::WrongState { command, id: id.into(), status: status.word().into(), advice: "" });
    }
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    cgroups.freeze(&record.cgroup, frozen).step("freeze the container")?;
    Ok(0)
}

/// `update`.
pub fn update(store: &Store, arguments: &Arguments) -> Outcome {
    let id = arguments.id()?;
    let place = store.find(id)?;
    let _held = place.lock(id)?;
    let (record, status) = place.look(id)?;
    if matches!(status, Status::Creating | Status::Stopped) {
        let status = status.word().into();
        return Err(Failure::WrongState { command: "cannot update", id: id.into(), status, advice: "" });
    }
    let resources = match arguments.get("resources") {
        Some(file) => read(file)?,
        None => gather(arguments)?,
    };
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    cgroups.set(&record.cgroup, &resources).step(format!("update container {id}"))?;
    Ok(0)
}

/// Limits of a file, or of stdin.
fn read(file: &str) -> Result<Resources, Failure> {
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.step(format!("read the resources of {file:?}"))?;
    let resources: Resources = serde_json::from_str(&text).step(format!("read the resources of {file:?}"))?;
    if !resources.devices.is_empty() {
        return Err(Failure::Unsupported("update of devices".into()));
    }
    Ok(resources)
}

/// Limits of flags.
fn gather(arguments: &Arguments) -> Result<Resources, Failure> {
    for name in ["l3-cache-schema", "mem-bw-schema"] {
        if arguments.given(name) {
            return Err(Failure::Unsupported(format!("update --{name}")));
        }
    }
    let text = |name: &str| arguments.get(name).map(String::from);
    let bytes = |name: &str| arguments.get(name).map(|text| bytes(name, text)).transpose();
    let weight = arguments.number("blkio-weight")?;
    Ok(Resources {
        cpu: Some(Cpu {
            shares: arguments.number("cpu-share")?,
            quota: arguments.number("cpu-quota")?,
            period: arguments.number("cpu-period")?,
            burst: arguments.number("cpu-burst")?,
            idle: arguments.number("cpu-idle")?,
            realtime_period: arguments.number("cpu-rt-period")?,
            realtime_runtime: arguments.number("cpu-rt-runtime")?,
            cpus: text("cpuset-cpus"),
            mems: text("cpuset-mems"),
        }),
        memory: Some(Memory {
            limit: bytes("memory")?,
            swap: bytes("memory-swap")?,
            reservation: bytes("memory-reservation")?,
            ..Memory::default()
        }),
        pids: arguments.number("pids-limit")?.map(|limit| Pids { limit }),
        block_io: weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    })
}

/// A size in bytes, with a unit perhaps.
fn bytes(name: &str, text: &str) -> Result<i64, Failure> {
    let wrong = || Failure::Usage(format!("flag --{name}: {text:?} is no size in bytes"));
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match bare.char_indices().last() {
        Some((at, 'k')) => (&bare[..at], 10),
        Some((at, 'm')) => (&bare[..at], 20),
        Some((at, 'g')) => (&bare[..at], 30),
        Some((at, 't')) => (&bare[..at], 40),
        _ => (bare, 0),
    };
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    if number < 0 && shift > 0 { Err(wrong()) } else { number.checked_mul(1 << shift).ok_or_else(wrong) }
}

/// `events`.
pub fn events(store: &Store, arguments: &Arguments) -> Outcome {
    let id = arguments.id()?;
    let place = store.find(id)?;
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    let interval = interval(arguments.get("interval").unwrap_or("5s"))?;
    let mut ooms = None;
    loop {
        let (record, status) = place.look(id)?;
        if matches!(status, Status::Stopped | Status::Creating) {
            return if ooms.is_some() { Ok(0) } else { Err(Failure::NotRunning) };
        }
        let now = cgroups.oom_kills(&record.cgroup).unwrap_or(0);
        if ooms.is_some_and(|before| now > before) {
            println!("{}", json!({"type": "oom", "id": id}));
        }
        ooms = Some(now);
        println!("{}", json!({"type": "stats", "id": id, "data": stats(&cgroups, &record.cgroup)}));
        if arguments.has("stats") {
            return Ok(0);
        }
        std::thread::sleep(interval);
    }
}

/// A time such as `5s` or `500ms`.
fn interval(text: &str) -> Result<Duration, Failure> {
    let wrong = || Failure::Usage(format!("flag --interval: {text:?} is no time such as 5s"));
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let parsed = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(number.checked_mul(*factor)?))
    });
    parsed.filter(|time| !time.is_zero()).ok_or_else(wrong)
}

/// What a cgroup has used, in the form that readers of `events --stats` know.
fn stats(cgroups: &Cgroups, path: &str) -> Value {
    let cpu = cgroups.cpu_usage(path).unwrap_or_default();
    let memory = cgroups.memory_usage(path).unwrap_or_default();
    let (threads, limit) = cgroups.thread_count(path).unwrap_or_default();
    let disks = cgroups.disk_usage(path);
    let entries = |pick: fn(&orlop_kernel::cgroup::DiskUsage) -> [(&'static str, u64); 2]| -> Vec<Value> {
        let entry = |disk: &orlop_kernel::cgroup::DiskUsage| {
            let (major, minor) = disk.device;
            pick(disk).map(|(op, value)| json!({"major": major, "minor": minor, "op": op, "value": value}))
        };
        disks.iter().flat_map(entry).collect()
    };
    let huge: serde_json::Map<String, Value> = cgroups
        .hugepage_usage(path)
        .into_iter()
        .map(|pages| (pages.page_size, json!({"usage": pages.usage, "max": pages.peak.unwrap_or(0), "failcnt": 0})))
        .collect();
    json!({
        "cpu": {
            "usage": {
                "total": cpu.total_nanoseconds,
                "kernel": cpu.system_nanoseconds.unwrap_or(0),
                "user": cpu.user_nanoseconds.unwrap_or(0),
            },
            "throttling": {
                "periods": cpu.periods.unwrap_or(0),
                "throttledPeriods": cpu.throttled_periods.unwrap_or(0),
                "throttledTime": cpu.throttled_nanoseconds.unwrap_or(0),
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": {
                "limit": memory.limit.unwrap_or(u64::MAX),
                "usage": memory.usage,
                "max": memory.peak.unwrap_or(0),
                "failcnt": memory.limit_hits.unwrap_or(0),
            },
            "swap": {
                "limit": memory.swap_limit.unwrap_or(u64::MAX),
                "usage": memory.swap.unwrap_or(0),
                "failcnt": 0,
            },
            "kernel": {"limit": u64::MAX, "usage": memory.kernel.unwrap_or(0), "failcnt": 0},
            "kernelTCP": {"limit": u64::MAX, "failcnt": 0},
            "raw": {
                "rss": memory.rss,
                "mapped_file": memory.mapped_file,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_page_faults,
            },
        },
        "pids": {"current": threads, "limit": limit.unwrap_or(0)},
        "blkio": {
            "ioServiceBytesRecursive": entries(|disk| [("Read", disk.read_bytes), ("Write", disk.written_bytes)]),
            "ioServicedRecursive": entries(|disk| [("Read", disk.reads), ("Write", disk.writes)]),
        },
        "hugetlb": huge,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (text, value) in [("1024", 1024), ("64m", 64 << 20), ("1GB", 1 << 30), ("-1", -1), ("0", 0)] {
            assert_eq!(bytes("memory", text).unwrap(), value, "{text}");
        }
        for text in ["", "m", "x", "-1m", "99999999999g"] {
            assert!(bytes("memory", text).is_err(), "{text}");
        }
        for (text, millis) in [("5s", 5000), ("250ms", 250), ("2m", 120_000)] {
            assert_eq!(interval(text).unwrap(), Duration::from_millis(millis));
        }
        for text in ["", "5", "0s", "s", "-1s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
