//! Reading the configuration again on SIGHUP, as CRI-O does: what can be changed without harm counts at once, and the log
//! says of every other key that changed that it waits for a restart.

use anyhow::{Context, Result};
use orlop_cri_server::{CriConfig, Reload};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use toml::{Table, Value};

use super::{Arguments, Settings, settings};
use crate::layout::Layout;
use crate::log_filter;

/// The tables whose keys count at once.
const LIVE: [&str; 5] = ["devices", "images", "log", "registries", "runtimes"];

/// The server's configuration, and those that come after it for as long as the process runs.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn configuration(layout: &Layout, arguments: Arguments) -> Result<(CriConfig, mpsc::Receiver<Reload>)> {
    let settings = settings(layout, &arguments)?;
    log_filter::change(&settings.log_filter)?;
    let (sender, receiver) = mpsc::channel(1);
    let config = settings.cri.clone();
    let follower = Follower { layout: layout.clone(), arguments, holds: settings.as_table()?, sender };
    tokio::spawn(follower.follow(signal(SignalKind::hangup()).context("listen for SIGHUP")?));
    Ok((config, receiver))
}

/// Who reads the configuration again.
struct Follower {
    layout: Layout,
    arguments: Arguments,
    /// What holds.
    holds: Table,
    sender: mpsc::Sender<Reload>,
}

impl Follower {
    async fn follow(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() && !self.sender.is_closed() {
            if let Err(error) = self.reload().await {
                let error = format!("{error:#}");
                tracing::error!(error, "the configuration was not read again; everything is as before");
            }
        }
    }

    async fn reload(&mut self) -> Result<()> {
        let settings = settings(&self.layout, &self.arguments)?;
        let fresh = settings.as_table()?;
        let (applied, answer) = oneshot::channel();
        self.sender.send(Reload { config: settings.cri, applied }).await.context("the server ends")?;
        answer.await.context("the server ends")??;
        log_filter::change(&settings.log_filter)?;
        let changes = changes(&self.holds, &fresh);
        let count = changes.len();
        for Change { key, live } in changes {
            match live {
                true => tracing::info!(key, "configuration: applied"),
                false => tracing::warn!(key, "configuration: changed, but needs a restart of the daemon"),
            }
        }
        tracing::info!(changed = count, "the configuration was read again");
        for table in LIVE {
            self.holds.remove(table);
            self.holds.extend(fresh.get(table).map(|value| (table.to_string(), value.clone())));
        }
        Ok(())
    }
}

impl Settings {
    fn as_table(&self) -> Result<Table> {
        Table::try_from(self.as_file()).context("write the configuration as a table")
    }
}

/// A key that says something else than before.
#[derive(Debug, PartialEq)]
struct Change {
    key: String,
    /// It counts at once.
    live: bool,
}

fn changes(before: &Table, after: &Table) -> Vec<Change> {
    let mut keys = Vec::new();
    compare("", before, after, &mut keys);
    keys.sort();
    let live = |key: &String| LIVE.iter().any(|table| key.split('.').next() == Some(table));
    keys.into_iter().map(|key| Change { live: live(&key), key }).collect()
}

/// Finds the paths of values that differ, in tables of tables.
fn compare(place: &str, before: &Table, after: &Table, keys: &mut Vec<String>) {
    let added = after.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(added) {
        let path = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        match (before.get(key), after.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(after))) => compare(&path, before, after, keys),
            (before, after) if before != after => keys.push(path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named() {
        let before = "socket = '/a'\n[images]\npinned = []\n[runtimes.a]\nprogram = '/a'\n[network]\nconf_dir = '/n'\n";
        let after =
            "socket = '/b'\n[images]\npinned = ['x']\n[runtimes.b]\nprogram = '/b'\n[network]\nconf_dir = '/n'\n";
        let [before, after] = [before, after].map(|text| text.parse::<Table>().unwrap());
        let named = changes(&before, &after).into_iter().map(|change| (change.key, change.live)).collect::<Vec<_>>();
        let expected = [("images.pinned", true), ("runtimes.a", true), ("runtimes.b", true), ("socket", false)];
        assert_eq!(named, expected.map(|(key, live)| (key.to_string(), live)));
        assert_eq!(changes(&after, &after), []);
    }
}
