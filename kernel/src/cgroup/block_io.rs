//! Limits of disks, and the other limits that few ask for: each is set, or refused by its name.

use std::path::Path;

use super::apply::write;
use super::resources::{BlockIo, ThrottleDevice};
use super::{CgroupError, Cgroups, Network, Resources, failed};

/// Refuses what no kernel has, or not this one, before anything is set.
pub(super) fn check(cgroups: &Cgroups, resources: &Resources) -> Result<(), CgroupError> {
    let v2 = matches!(cgroups, Cgroups::V2(_));
    let memory = resources.memory.clone().unwrap_or_default();
    let cpu = resources.cpu.clone().unwrap_or_default();
    let disks = resources.block_io.clone().unwrap_or_default();
    let leaf = disks.leaf_weight.is_some() || disks.weight_device.iter().any(|disk| disk.leaf_weight.is_some());
    let above = |value: Option<i64>| value.is_some_and(|value| value > 0);
    let table = [
        ("memory.kernel", above(memory.kernel)),
        ("memory.kernelTCP", above(memory.kernel_tcp)),
        ("memory.useHierarchy: false", memory.use_hierarchy == Some(false)),
        ("blockIO.leafWeight", leaf),
        ("rdma", resources.rdma.as_ref().is_some_and(|rdma| rdma.as_object().is_none_or(|map| !map.is_empty()))),
        ("memory.swappiness (of cgroup v1)", v2 && memory.swappiness.is_some()),
        ("memory.disableOOMKiller (of cgroup v1)", v2 && memory.disable_oom_killer == Some(true)),
        ("cpu.realtimeRuntime (of cgroup v1)", v2 && cpu.realtime_runtime.is_some_and(|value| value != 0)),
        ("cpu.realtimePeriod (of cgroup v1)", v2 && cpu.realtime_period.is_some_and(|value| value != 0)),
        (
            "network (of cgroup v1)",
            v2 && resources.network.as_ref().is_some_and(|network| *network != Network::default()),
        ),
        ("unified (of cgroup v2)", !v2 && !resources.unified.is_empty()),
    ];
    match table.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((name, _)) => {
            let why = std::io::Error::new(std::io::ErrorKind::Unsupported, "not supported here; leave it out");
            Err(failed("set", Path::new(&format!("linux.resources.{name}")), why))
        }
    }
}

/// Sets what v1 has.
pub(super) fn set_v1(cgroups: &Cgroups, path: &str, resources: &Resources) -> Result<(), CgroupError> {
    let put = |controller: &str, file: &str, value: String| match cgroups.folder(path, controller)? {
        Some(folder) => write(&folder.join(file), &value),
        None => Err(failed("find the controller of", Path::new(file), std::io::ErrorKind::Unsupported.into())),
    };
    if let Some(disks) = &resources.block_io {
        let folder = cgroups.folder(path, "blkio")?;
        if let Some(weight) = disks.weight.filter(|weight| *weight > 0) {
            put("blkio", weight_file(folder.as_deref(), "blkio"), weight.to_string())?;
        }
        for disk in &disks.weight_device {
            let file = if weight_file(folder.as_deref(), "blkio") == "blkio.weight" {
                "blkio.weight_device"
            } else {
                "blkio.bfq.weight_device"
            };
            put("blkio", file, format!("{}:{} {}", disk.major, disk.minor, disk.weight.unwrap_or(0)))?;
        }
        for (file, disk) in throttles(disks) {
            let file = format!("blkio.throttle.{}_device", file.0);
            put("blkio", &file, format!("{}:{} {}", disk.major, disk.minor, disk.rate))?;
        }
    }
    let network = resources.network.clone().unwrap_or_default();
    if let Some(class) = network.class_id.filter(|class| *class > 0) {
        put("net_cls", "net_cls.classid", class.to_string())?;
    }
    for device in &network.priorities {
        put("net_prio", "net_prio.ifpriomap", format!("{} {}", device.name, device.priority))?;
    }
    Ok(())
}

/// Sets what v2 has.
pub(super) fn set_v2(folder: &Path, resources: &Resources) -> Result<(), CgroupError> {
    let Some(disks) = &resources.block_io else { return Ok(()) };
    if let Some(weight) = disks.weight.filter(|weight| *weight > 0) {
        match weight_file(Some(folder), "io") {
            "io.bfq.weight" => write(&folder.join("io.bfq.weight"), &weight.to_string())?,
            // 10 to 1000 becomes 1 to 10000.
            _ => write(&folder.join("io.weight"), &(1 + (weight.clamp(10, 1000) - 10) * 9999 / 990).to_string())?,
        }
    }
    for disk in &disks.weight_device {
        let value = format!("{}:{} {}", disk.major, disk.minor, disk.weight.unwrap_or(0));
        write(&folder.join("io.bfq.weight"), &value)?;
    }
    for (key, disk) in throttles(disks) {
        write(&folder.join("io.max"), &format!("{}:{} {}={}", disk.major, disk.minor, key.1, disk.rate))?;
    }
    Ok(())
}

/// The file of weights: of the scheduler that has them.
fn weight_file(folder: Option<&Path>, version: &str) -> &'static str {
    let there = |file: &str| folder.is_some_and(|folder| folder.join(file).exists());
    match version {
        "blkio" if there("blkio.bfq.weight") => "blkio.bfq.weight",
        "blkio" => "blkio.weight",
        _ if there("io.bfq.weight") => "io.bfq.weight",
        _ => "io.weight",
    }
}

/// All limits of disks with their names in v1 and v2.
fn throttles(disks: &BlockIo) -> impl Iterator<Item = ((&'static str, &'static str), &ThrottleDevice)> {
    let lists = [
        (("read_bps", "rbps"), &disks.throttle_read_bps_device),
        (("write_bps", "wbps"), &disks.throttle_write_bps_device),
        (("read_iops", "riops"), &disks.throttle_read_iops_device),
        (("write_iops", "wiops"), &disks.throttle_write_iops_device),
    ];
    lists.into_iter().flat_map(|(names, list)| list.iter().map(move |disk| (names, disk)))
}
