//! The servers of one pull: mirrors in order, then the registry itself; whoever has the content gives it.

use std::sync::{Arc, Mutex, PoisonError};

use super::RegistryError;
use super::client::Session;

/// Characters of a mirror's failure in the error of the pull.
const FAILURE_CHARS_MAX: usize = 300;

/// The servers that a repository may be had from.
pub struct Sources {
    /// Never empty.
    sessions: Vec<Arc<Session>>,
    /// What mirrors said, the last failure of each.
    failures: Mutex<Vec<Option<String>>>,
}

impl Sources {
    pub(super) fn new(sessions: Vec<Arc<Session>>) -> Self {
        let failures = Mutex::new(vec![None; sessions.len()]);
        Self { sessions, failures }
    }

    /// How messages call the registry itself.
    pub(super) fn registry(&self) -> &str {
        self.sessions.last().map_or("", |session| &session.registry)
    }

    pub(super) fn session(&self, number: usize) -> &Session {
        &self.sessions[number]
    }

    /// The first server to ask, for a tag or for content by digest.
    pub(super) fn first(&self, by_tag: bool) -> Result<usize, RegistryError> {
        self.usable_from(0, by_tag).ok_or_else(|| RegistryError::Configuration {
            registry: self.registry().to_owned(),
            why: format!(
                "no server may be asked for {}: add \"{}\" to the capabilities of one in hosts.toml",
                if by_tag { "tags" } else { "content" },
                if by_tag { "resolve" } else { "pull" }
            ),
        })
    }

    /// The server after one that failed; the failure itself if there is none.
    pub(super) fn next(&self, failed: usize, by_tag: bool, error: RegistryError) -> Result<usize, RegistryError> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = self.usable_from(failed + 1, by_tag) else {
            failures[failed] = None;
            let earlier: Vec<String> = failures.iter().flatten().cloned().collect();
            return Err(error.after(&earlier));
        };
        tracing::info!(registry = self.registry(), mirror = self.session(failed).registry, %error, "mirror is passed over");
        failures[failed] = Some(error.to_string().chars().take(FAILURE_CHARS_MAX).collect());
        Ok(next)
    }

    /// How many servers there are beside the last one.
    pub(crate) fn spares(&self) -> usize {
        self.sessions.len() - 1
    }

    /// After wrong bytes: asks that mirror nothing more in this pull. Tells whether it was one, so that others can be asked.
    pub(crate) fn turn_from_liar(&self, error: &RegistryError) -> bool {
        let RegistryError::WrongContent { registry: liar, .. } = error else { return false };
        let found = self.sessions.iter().position(|session| session.registry == *liar && session.distrust());
        let Some(number) = found else { return false };
        tracing::warn!(registry = self.registry(), mirror = %liar, %error, "mirror gives wrong content and is not asked again");
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures[number] = Some(error.to_string().chars().take(FAILURE_CHARS_MAX).collect());
        true
    }

    fn usable_from(&self, number: usize, by_tag: bool) -> Option<usize> {
        let usable = |number: &usize| {
            let session = self.session(*number);
            let may = session.endpoint.capabilities;
            !session.is_avoided() && if by_tag { may.resolve } else { may.pull }
        };
        (number..self.sessions.len()).find(usable)
    }
}
