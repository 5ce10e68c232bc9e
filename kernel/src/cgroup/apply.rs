//! Making the folders of a cgroup and writing its limits.

use std::path::Path;

use super::{
    CgroupError, Cgroups, DeviceRule, Hierarchy, HugepageLimit, Resources, block_io, failed, shares_to_weight,
};

/// Makes a v1 folder with those above it. A fresh cpuset is empty and takes no process, so it gets its parent's.
pub(super) fn make_v1(folder: &Path, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
    if !folder.is_dir() {
        if let Some(parent) = folder.parent().filter(|parent| is_below(parent, hierarchy)) {
            make_v1(parent, hierarchy)?;
        }
        make_folder(folder)?;
    }
    if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fill_cpuset(folder, file, hierarchy)?;
        }
    }
    Ok(())
}

fn is_below(folder: &Path, hierarchy: &Hierarchy) -> bool {
    folder.starts_with(&hierarchy.mount) && folder != hierarchy.mount
}

/// Gives a cpuset its parent's value where it has none. It may be there and empty: another process has just made it, or
/// was killed right after. Gives the value.
fn fill_cpuset(folder: &Path, file: &str, hierarchy: &Hierarchy) -> Result<String, CgroupError> {
    let path = folder.join(file);
    let own = std::fs::read_to_string(&path).map_err(|error| failed("read", &path, error))?;
    match folder.parent().filter(|_| is_below(folder, hierarchy)) {
        Some(parent) if own.trim().is_empty() => {
            let value = fill_cpuset(parent, file, hierarchy)?;
            write(&path, &value)?;
            Ok(value)
        }
        _ => Ok(own.trim().to_string()),
    }
}

/// Makes a v2 folder with those above it; each gets all controllers that its parent has.
pub(super) fn make_v2(mount: &Path, path: &str) -> Result<(), CgroupError> {
    let mut folder = mount.to_path_buf();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        give_controllers(&folder);
        folder.push(part);
        make_folder(&folder)?;
    }
    Ok(())
}

/// Gives each v2 folder above a path all controllers that its parent has.
pub(super) fn hand_down(mount: &Path, path: &str) {
    let mut folder = mount.to_path_buf();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        give_controllers(&folder);
        folder.push(part);
    }
}

/// Lets the folders below a v2 folder have all its controllers.
fn give_controllers(folder: &Path) {
    let available = std::fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_ascii_whitespace() {
        // One that can't be had here (threaded parents, realtime tasks) must not cost the others.
        let _ = std::fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn make_folder(folder: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed("make", folder, error)),
        _ => Ok(()),
    }
}

pub(super) fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut out| std::io::Write::write_all(&mut out, value.as_bytes()))
        .map_err(|error| failed("write to", file, std::io::Error::new(error.kind(), format!("{value:?}: {error}"))))
}

/// Writes all limits that are given.
pub(super) fn set(cgroups: &Cgroups, path: &str, resources: &Resources) -> Result<(), CgroupError> {
    block_io::check(cgroups, resources)?;
    if resources.memory.as_ref().is_some_and(|memory| memory.check_before_update == Some(true)) {
        check_usage(cgroups, path, resources)?;
    }
    match cgroups {
        Cgroups::V1(_) => {
            set_v1(cgroups, path, resources)?;
            block_io::set_v1(cgroups, path, resources)
        }
        Cgroups::V2(mount) => {
            let folder = mount.join(path.trim_start_matches('/'));
            set_v2(&folder, resources)?;
            block_io::set_v2(&folder, resources)
        }
    }
}

/// Refuses a limit that is below what is used already.
fn check_usage(cgroups: &Cgroups, path: &str, resources: &Resources) -> Result<(), CgroupError> {
    let limit = resources.memory.as_ref().and_then(|memory| memory.limit).filter(|limit| *limit > 0);
    match (limit, cgroups.memory_usage(path)) {
        (Some(limit), Some(used)) if used.usage > limit.unsigned_abs() => {
            let why = format!("{limit} bytes are less than the {} that are used", used.usage);
            Err(failed("limit the memory of", Path::new(path), std::io::Error::other(why)))
        }
        _ => Ok(()),
    }
}

fn set_v1(cgroups: &Cgroups, path: &str, resources: &Resources) -> Result<(), CgroupError> {
    let put = |controller: &str, file: &str, value: String| match cgroups.folder(path, controller)? {
        Some(folder) => write(&folder.join(file), &value),
        None => Ok(()),
    };
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
            put("cpu", "cpu.shares", shares.to_string())?;
        }
        if let Some(period) = cpu.period.filter(|period| *period > 0) {
            put("cpu", "cpu.cfs_period_us", period.to_string())?;
        }
        if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
            put("cpu", "cpu.cfs_quota_us", quota.to_string())?;
        }
        for (file, value) in [
            ("cpu.cfs_burst_us", cpu.burst.map(|value| value as i64)),
            ("cpu.rt_period_us", cpu.realtime_period.filter(|value| *value != 0).map(|value| value as i64)),
            ("cpu.rt_runtime_us", cpu.realtime_runtime.filter(|value| *value != 0)),
            ("cpu.idle", cpu.idle),
        ] {
            if let Some(value) = value {
                put("cpu", file, value.to_string())?;
            }
        }
        if let Some(cpus) = cpu.cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            put("cpuset", "cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = cpu.mems.as_ref().filter(|mems| !mems.is_empty()) {
            put("cpuset", "cpuset.mems", mems.clone())?;
        }
    }
    if let Some(memory) = &resources.memory {
        set_memory_v1(cgroups, path, memory)?;
        if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
            put("memory", "memory.soft_limit_in_bytes", bytes.to_string())?;
        }
        if let Some(swappiness) = memory.swappiness {
            put("memory", "memory.swappiness", swappiness.to_string())?;
        }
        if let Some(disabled) = memory.disable_oom_killer {
            put("memory", "memory.oom_control", u8::from(disabled).to_string())?;
        }
    }
    if let Some(pids) = &resources.pids {
        put("pids", "pids.max", limit(pids.limit))?;
    }
    let folder = |controller: &str| cgroups.folder(path, controller);
    limit_hugepages(folder("hugetlb")?.as_deref(), &resources.hugepage_limits, "limit_in_bytes")?;
    match folder("devices")? {
        Some(folder) if !resources.devices.is_empty() => set_devices_v1(&folder, &resources.devices),
        _ => Ok(()),
    }
}

/// Writes rules in their order. Each of the two files is opened once, however many rules there are.
fn set_devices_v1(folder: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let checked = rules.iter().try_for_each(DeviceRule::check);
    checked.map_err(|error| failed("set the device rules of", folder, std::io::Error::other(error)))?;
    let open = |name: &str| {
        let file = folder.join(name);
        std::fs::OpenOptions::new().write(true).open(&file).map_err(|error| failed("open", &file, error))
    };
    let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
    for rule in rules {
        let (file, name) = if rule.allow { (&mut allow, "devices.allow") } else { (&mut deny, "devices.deny") };
        let (line, path) = (rule.line(), folder.join(name));
        std::io::Write::write_all(file, line.as_bytes()).map_err(|error| {
            failed("write to", &path, std::io::Error::new(error.kind(), format!("{line:?}: {error}")))
        })?;
    }
    Ok(())
}

/// Limits huge pages by the files of a controller, those that are used and those that are set aside (kernels before 5.7
/// count the former alone). A limit of zero needs no controller: there is nothing that it could be asked for.
fn limit_hugepages(folder: Option<&Path>, limits: &[HugepageLimit], suffix: &str) -> Result<(), CgroupError> {
    for huge in limits {
        let error =
            |folder: &Path, text: String| failed("limit the huge pages of", folder, std::io::Error::other(text));
        let size = huge.kernel_size().map_err(|text| error(folder.unwrap_or(Path::new("the cgroup")), text))?;
        let file = folder.map(|folder| folder.join(format!("hugetlb.{size}.{suffix}"))).filter(|file| file.exists());
        let Some(file) = file else {
            if huge.limit == 0 {
                continue;
            }
            let text = format!("this machine has no controller for huge pages of {size}");
            return Err(error(folder.unwrap_or(Path::new("the cgroup")), text));
        };
        write(&file, &huge.limit.to_string())?;
        let reserved = file.with_file_name(format!("hugetlb.{size}.rsvd.{suffix}"));
        if reserved.exists() {
            write(&reserved, &huge.limit.to_string())?;
        }
    }
    Ok(())
}

/// Memory and memory with swap must never cross: the one that grows goes first.
fn set_memory_v1(cgroups: &Cgroups, path: &str, memory: &super::Memory) -> Result<(), CgroupError> {
    let Some(folder) = cgroups.folder(path, "memory")? else { return Ok(()) };
    let (plain, both) = (folder.join("memory.limit_in_bytes"), folder.join("memory.memsw.limit_in_bytes"));
    let swap = memory.swap.filter(|swap| *swap != 0 && both.exists());
    let Some(limit) = memory.limit.filter(|limit| *limit != 0) else {
        return swap.map_or(Ok(()), |swap| write(&both, &swap.to_string()));
    };
    let current: i64 =
        std::fs::read_to_string(&both).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(i64::MAX);
    match swap {
        Some(swap) if swap == -1 || swap > current => {
            write(&both, &swap.to_string())?;
            write(&plain, &limit.to_string())
        }
        Some(swap) => {
            write(&plain, &limit.to_string())?;
            write(&both, &swap.to_string())
        }
        None => write(&plain, &limit.to_string()),
    }
}

fn set_v2(folder: &Path, resources: &Resources) -> Result<(), CgroupError> {
    let put = |file: &str, value: String| write(&folder.join(file), &value);
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
            put("cpu.weight", shares_to_weight(shares).to_string())?;
        }
        if cpu.quota.is_some_and(|quota| quota != 0) || cpu.period.is_some_and(|period| period > 0) {
            let quota = cpu.quota.filter(|quota| *quota > 0).map_or("max".to_string(), |quota| quota.to_string());
            put("cpu.max", format!("{quota} {}", cpu.period.filter(|period| *period > 0).unwrap_or(100_000)))?;
        }
        if let Some(burst) = cpu.burst {
            put("cpu.max.burst", burst.to_string())?;
        }
        if let Some(idle) = cpu.idle {
            put("cpu.idle", idle.to_string())?;
        }
        if let Some(cpus) = cpu.cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            put("cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = cpu.mems.as_ref().filter(|mems| !mems.is_empty()) {
            put("cpuset.mems", mems.clone())?;
        }
    }
    if let Some(bytes) = resources.memory.as_ref().and_then(|memory| memory.reservation).filter(|bytes| *bytes != 0) {
        put("memory.low", limit(bytes))?;
    }
    if let Some(memory) = &resources.memory {
        set_memory_v2(folder, memory)?;
    }
    if let Some(pids) = &resources.pids {
        put("pids.max", limit(pids.limit))?;
    }
    limit_hugepages(Some(folder), &resources.hugepage_limits, "max")?;
    if !resources.devices.is_empty() {
        super::device_filter::set(folder, &resources.devices)?;
    }
    for (file, value) in &resources.unified {
        if file.contains('/') {
            return Err(CgroupError::Path(file.clone()));
        }
        put(file, value.clone())?;
    }
    Ok(())
}

/// v2 counts swap apart from memory.
fn set_memory_v2(folder: &Path, memory: &super::Memory) -> Result<(), CgroupError> {
    let file = folder.join("memory.max");
    if let Some(bytes) = memory.limit.filter(|bytes| *bytes != 0) {
        write(&file, &limit(bytes))?;
    }
    let Some(swap) = memory.swap.filter(|swap| *swap != 0) else { return Ok(()) };
    let current = || std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let bytes = memory.limit.filter(|bytes| *bytes != 0).or_else(current).unwrap_or(0);
    let value = if swap < 0 { "max".to_string() } else { (swap - bytes).max(0).to_string() };
    write(&folder.join("memory.swap.max"), &value)
}

fn limit(value: i64) -> String {
    if value <= 0 { "max".to_string() } else { value.to_string() }
}
