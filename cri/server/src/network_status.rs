//! Whether the pods' network is ready, without a process per question.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use orlop_network::Network;

use crate::error::chain;

/// How long a good answer of the plugins counts, as long as the configuration stays.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How long plugins are asked: a plugin that hangs must not make the runtime look dead.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Names and times of the files in a folder.
type FolderState = Vec<(std::ffi::OsString, Option<SystemTime>)>;

/// The last good answer and the configuration that it was for.
#[derive(Default)]
pub(crate) struct NetworkStatus(Mutex<Option<(Instant, FolderState)>>);

impl NetworkStatus {
    /// Why the network is not ready, or nothing.
    pub(crate) async fn check(&self, network: &Network) -> Result<(), String> {
        let seen = folder_state(network.conf_dir());
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some_and(|(at, state)| state == seen && at.elapsed() < GOOD_FOR) {
            return Ok(());
        }
        let answer = tokio::time::timeout(ANSWER_TIME, network.status()).await;
        answer
            .map_err(|_| format!("the network plugins have not answered within {} s", ANSWER_TIME.as_secs()))?
            .map_err(|error| chain(&error))?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), seen));
        Ok(())
    }
}

/// Names and times of the files in a folder.
fn folder_state(folder: &Path) -> FolderState {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut state: Vec<_> = entries
        .flatten()
        .map(|entry| (entry.file_name(), entry.metadata().and_then(|metadata| metadata.modified()).ok()))
        .collect();
    state.sort();
    state
}
