//! `orlop down`: ends an instance with its pods and removes what it made.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_agent_daemon::CONTAINER_LOGS;
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::mount;

use crate::cri;
use crate::layout::{Instance, Layout};
use crate::network;

/// How long the daemon may take to end.
const STOP_TIME: Duration = Duration::from_secs(30);

/// Ends everything. May be repeated.
pub async fn run(layout: &Layout) -> Result<()> {
    if !layout.state.join("instance.json").exists() {
        println!("nothing to stop: {} holds no instance", layout.state.display());
        return Ok(());
    }
    let instance = Instance::load_or_choose(layout)?;
    stop_daemon(layout)?;
    println!("the daemon has ended; removing the pods");
    let removed = orlop_cri_server::remove_all(cri::config(layout, &cri::Arguments::default())?).await?;
    println!("{removed} pods are removed");
    let own = layout.clone();
    tokio::task::spawn_blocking(move || clean(&own, &instance)).await?
}

/// Tells the daemon to end and waits for it.
fn stop_daemon(layout: &Layout) -> Result<()> {
    let path = layout.pid_file();
    let Ok(file) = std::fs::File::open(&path) else { return Ok(()) };
    // Whoever holds the lock runs; a number without a lock is of one that was killed.
    if file.try_lock().is_ok() {
        return Ok(());
    }
    let pid = std::fs::read_to_string(&path)?;
    let pid: i32 = pid.trim().parse().with_context(|| format!("{} holds no process number", path.display()))?;
    let pid = rustix::process::Pid::from_raw(pid).context("a process number")?;
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::TERM)?;
    let limit = rustix::time::Timespec { tv_sec: STOP_TIME.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&limit))? == 0 {
        bail!("process {} did not end within {} s", pid.as_raw_nonzero(), STOP_TIME.as_secs());
    }
    Ok(())
}

/// Removes mounts, cgroups, the bridge and the folders.
fn clean(layout: &Layout, instance: &Instance) -> Result<()> {
    for folder in [&layout.kubelet, &layout.run, &layout.state] {
        for path in mount::mounts_below(folder).unwrap_or_default().iter().rev() {
            mount::detach(path).with_context(|| format!("unmount {}", path.display()))?;
        }
    }
    network::remove_bridge(instance).context("remove the bridge")?;
    let cgroups = Cgroups::detect().context("find the cgroups")?;
    let own = if instance.cgroup_root.is_empty() { "/kubepods" } else { instance.cgroup_root.as_str() };
    cgroups.remove(own, || {})?;
    network::clear(layout)?;
    match &layout.root {
        Some(root) => {
            // What somebody wrote stays; the state, which tells that there is an instance, goes last.
            let kept = [&layout.configuration, &layout.state];
            for entry in std::fs::read_dir(root)?.flatten().filter(|entry| !kept.contains(&&entry.path())) {
                remove(&entry.path())?;
            }
            remove(&layout.state)?;
        }
        None => {
            for path in [&layout.run, &layout.kubelet, &layout.pod_logs, &layout.cni_networks.join(&instance.name)] {
                remove(path)?;
            }
            let results = layout.cni_cache.join("results");
            for folder in [&results, &layout.cni_networks, &layout.cni_conf, &layout.cni_bin] {
                remove_empty(folder);
            }
            remove_links(Path::new(CONTAINER_LOGS), &layout.pod_logs);
            remove_empty(Path::new(CONTAINER_LOGS));
            remove(&layout.state)?;
        }
    }
    println!("nothing is left");
    Ok(())
}

/// Removes the links in a shared folder that lead into a folder of ours.
fn remove_links(folder: &Path, into: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(into)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes a shared folder and the one above it (`/etc/cni`) where nobody else has anything in them.
fn remove_empty(folder: &Path) {
    for folder in folder.ancestors().take(2) {
        // One with something in it, or that is not there, is as it should be.
        let _ = std::fs::remove_dir(folder);
    }
}

fn remove(path: &Path) -> Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    gone.with_context(|| format!("remove {}", path.display()))
}
