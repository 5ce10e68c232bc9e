//! Plugins that register by a socket in a folder (`plugins_registry`), as the kubelet's plugin watcher has it.
//!
//! A socket that appears is asked what it is; a CSI driver is asked for its node, becomes part of the list of drivers and
//! is told so. A socket that goes takes its driver with it; one that is made anew registers again.

mod csi;
mod register;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use orlop_agent_core::ports::RegisteredDriver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// First wait after a failed registration; doubled up to [`RETRY_MAX`] (kubelet: `reconciler`, exponential back-off).
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const RETRY_MAX: Duration = Duration::from_secs(122);
/// Plugins at a time; further sockets are left alone.
const PLUGINS_MAX: usize = 128;

/// Follows a folder of registration sockets until cancelled; the receiver holds the drivers of the moment.
///
/// # Errors
/// When the folder can't be made or watched.
pub fn watch_plugins(
    registry: &Path,
    cancel: CancellationToken,
) -> std::io::Result<watch::Receiver<Vec<RegisteredDriver>>> {
    std::fs::create_dir_all(registry)?;
    let inotify = Inotify::init()?;
    // Before the first look, so that nothing appears in between.
    inotify
        .watches()
        .add(registry, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::MOVED_FROM)?;
    let events = inotify.into_event_stream(vec![0; 16 << 10])?;
    let (drivers, receiver) = watch::channel(Vec::new());
    let mut watcher = Watcher { registry: registry.to_path_buf(), drivers, plugins: BTreeMap::new() };
    for entry in std::fs::read_dir(registry)?.flatten() {
        watcher.appeared(entry.file_name());
    }
    tokio::spawn(async move {
        tokio::pin!(events);
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => watcher.note(event.mask, event.name),
                Some(Err(error)) => tracing::warn!(%error, folder = ?watcher.registry, "watch the plugins"),
                None => break,
            }
        }
        for (_, plugin) in watcher.plugins {
            plugin.abort();
        }
    });
    Ok(receiver)
}

struct Watcher {
    registry: PathBuf,
    drivers: watch::Sender<Vec<RegisteredDriver>>,
    /// Tasks that register and then wait, by the socket's name.
    plugins: BTreeMap<OsString, JoinHandle<()>>,
}

impl Watcher {
    fn note(&mut self, mask: EventMask, name: Option<OsString>) {
        let Some(name) = name else { return };
        if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            self.gone(&name);
        } else {
            self.appeared(name);
        }
    }

    fn appeared(&mut self, name: OsString) {
        let socket = self.registry.join(&name);
        let is_socket = std::fs::symlink_metadata(&socket).is_ok_and(|found| found.file_type().is_socket());
        if !is_socket || name.to_string_lossy().starts_with('.') {
            return;
        }
        self.gone(&name);
        if self.plugins.len() >= PLUGINS_MAX {
            tracing::warn!(?socket, "more than {PLUGINS_MAX} plugins want to register; this one is left alone");
            return;
        }
        let drivers = self.drivers.clone();
        self.plugins.insert(name, tokio::spawn(keep_registered(socket, drivers)));
    }

    fn gone(&mut self, name: &OsString) {
        if let Some(plugin) = self.plugins.remove(name) {
            plugin.abort();
        }
    }
}

/// Registers a plugin, again and again until it works, and takes its driver out of the list when it is aborted.
async fn keep_registered(socket: PathBuf, drivers: watch::Sender<Vec<RegisteredDriver>>) {
    let mut wait = RETRY_FIRST;
    loop {
        match register::register(&socket).await {
            Ok(driver) => {
                tracing::info!(driver = driver.name, socket = ?driver.socket, "a CSI driver has registered");
                let _listed = Listed::new(driver, drivers);
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::warn!(plugin = ?socket, error, "register a plugin; tried again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// A driver that is in the list as long as this lives.
struct Listed {
    driver: RegisteredDriver,
    drivers: watch::Sender<Vec<RegisteredDriver>>,
}

impl Listed {
    fn new(driver: RegisteredDriver, drivers: watch::Sender<Vec<RegisteredDriver>>) -> Listed {
        drivers.send_modify(|list| {
            list.retain(|other| other.name != driver.name);
            list.push(driver.clone());
        });
        Listed { driver, drivers }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // One that has registered since under the same name stays.
        self.drivers.send_if_modified(|list| {
            let before = list.len();
            list.retain(|other| *other != self.driver);
            list.len() != before
        });
    }
}
