//! Plugins that register by a socket in a folder (`plugins_registry`), as the kubelet's plugin watcher has it.
//!
//! ```text
//!  folder ──inotify, slow rescan──> sockets of the moment (a value) ──> one task per socket
//!      task: GetInfo -> checks -> NodeGetInfo -> list of drivers -> NotifyRegistrationStatus; again until it works
//! ```
//! A socket that goes takes its driver with it; one that is made anew registers again. A plugin that hangs delays
//! nobody but itself.

mod csi;
mod registration;
mod sockets;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask, Watches};
use orlop_agent_core::ports::RegisteredDriver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use sockets::{Identity, PLUGINS_MAX, find_sockets};
use state::{Registration, RegistrationEvent};

/// Between two looks at the folder when nothing is heard of it.
const RESCAN_INTERVAL: Duration = Duration::from_secs(60);
/// What is heard of a folder.
const MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::ONLYDIR);

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
    let mut watches = inotify.watches();
    watches.add(registry, MASK)?;
    let mut events = inotify.into_event_stream(vec![0; 16 << 10])?;
    let (drivers, receiver) = watch::channel(Vec::new());
    let mut watcher = Watcher { registry: registry.to_path_buf(), watches, drivers, plugins: BTreeMap::new() };
    watcher.rescan();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                event = events.next() => match event {
                    // What has happened does not matter: what is there now does. A lost event costs a minute.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::warn!(%error, folder = ?watcher.registry, "watching the plugins fails; they are looked for now and then");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    None => break,
                },
                () = tokio::time::sleep(RESCAN_INTERVAL) => {}
            }
            watcher.rescan();
        }
        for plugin in watcher.plugins.into_values() {
            plugin.task.abort();
        }
    });
    Ok(receiver)
}

/// A plugin's socket that is being registered, or is.
struct Plugin {
    identity: Identity,
    task: JoinHandle<()>,
}

struct Watcher {
    registry: PathBuf,
    watches: Watches,
    drivers: watch::Sender<Vec<RegisteredDriver>>,
    plugins: BTreeMap<PathBuf, Plugin>,
}

impl Watcher {
    /// Brings the tasks in line with the sockets that are there.
    fn rescan(&mut self) {
        let found = find_sockets(&self.registry);
        for folder in found.folders {
            // A folder that is watched already stays so; one that has just gone is no matter.
            let _ = self.watches.add(folder, MASK);
        }
        self.plugins.retain(|socket, plugin| {
            let stays = found.sockets.get(socket) == Some(&plugin.identity);
            if !stays {
                tracing::info!(?socket, "the socket of a plugin is gone");
                plugin.task.abort();
            }
            stays
        });
        for (socket, identity) in found.sockets {
            if self.plugins.contains_key(&socket) {
                continue;
            }
            if self.plugins.len() >= PLUGINS_MAX {
                tracing::warn!(?socket, "more than {PLUGINS_MAX} plugins want to register; this one is left alone");
                return;
            }
            let task = tokio::spawn(keep_registered(socket.clone(), self.drivers.clone()));
            self.plugins.insert(socket, Plugin { identity, task });
        }
    }
}

/// Registers a plugin, again and again until it works, and takes its driver out of the list when it is aborted.
async fn keep_registered(socket: PathBuf, drivers: watch::Sender<Vec<RegisteredDriver>>) {
    let mut state = Registration::default();
    let mut listed = None;
    loop {
        // The plugin may use what it is told at once, so it is listed before it hears of it.
        let outcome =
            registration::register(&socket, |driver| listed = Some(Listed::new(driver, drivers.clone()))).await;
        match outcome {
            Ok(name) => {
                state = state.after(RegistrationEvent::Accepted);
                tracing::info!(driver = name, ?socket, "a CSI driver has registered");
            }
            Err(error) => {
                state = state.after(RegistrationEvent::Failed);
                listed = None;
                tracing::warn!(plugin = ?socket, %error, failures = state.failures(), "a plugin could not be registered; it is tried again");
            }
        }
        match state.wait() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => {
                let _listed = listed;
                return std::future::pending().await;
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
