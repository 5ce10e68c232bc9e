//! The life of a plugin's registration.
//!
//! ```text
//!          Accepted
//!  Found ───────────> Registered
//!    │ Failed            ^    (a socket that goes ends it in any state; one that is made anew is a new plugin)
//!    v                   │ Accepted
//!  Failing(n) ───────────┘   waits 20 ms, doubled up to 2 min
//!    └─ Failed -> Failing(n + 1)
//! ```

use std::time::Duration;

/// First wait after a failure. Sockets are seen before anybody listens on them, so the first try often comes too early.
const WAIT_FIRST: Duration = Duration::from_millis(20);
/// Longest wait (kubelet: exponential back-off of the operation executor, 2 min 2 s).
const WAIT_MAX: Duration = Duration::from_secs(122);

/// Where a plugin is in its registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Its socket is there; it is being asked.
    #[default]
    Found,
    /// So many tries in a row have failed; the next comes after a wait.
    Failing(u32),
    /// It is registered and knows it; nothing is to be done.
    Registered,
}

/// What has happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegistrationEvent {
    /// It was accepted and told so.
    Accepted,
    /// It did not answer, was refused, or could not be told.
    Failed,
}

impl Registration {
    /// The state after an event.
    pub(crate) fn after(self, event: RegistrationEvent) -> Registration {
        match (self, event) {
            (_, RegistrationEvent::Accepted) => Registration::Registered,
            (Registration::Failing(failures), RegistrationEvent::Failed) => {
                Registration::Failing(failures.saturating_add(1))
            }
            (Registration::Found | Registration::Registered, RegistrationEvent::Failed) => Registration::Failing(1),
        }
    }

    /// Failures in a row.
    pub(crate) fn failures(self) -> u32 {
        if let Registration::Failing(failures) = self { failures } else { 0 }
    }

    /// Time until the next try; none when nothing is to be tried.
    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Registration::Found => Some(Duration::ZERO),
            Registration::Failing(failures) => {
                Some(WAIT_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(WAIT_MAX))
            }
            Registration::Registered => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_meets_every_event() {
        use Registration as S;
        use RegistrationEvent as E;
        for (state, accepted, failed) in [
            (S::Found, S::Registered, S::Failing(1)),
            (S::Failing(3), S::Registered, S::Failing(4)),
            (S::Failing(u32::MAX), S::Registered, S::Failing(u32::MAX)),
            (S::Registered, S::Registered, S::Failing(1)),
        ] {
            assert_eq!((state.after(E::Accepted), state.after(E::Failed)), (accepted, failed), "{state:?}");
        }
    }

    #[test]
    fn waits_double_up_to_two_minutes() {
        let millis = |state: Registration| state.wait().map(|wait| wait.as_millis());
        assert_eq!(millis(Registration::Failing(1)), Some(20));
        assert_eq!(millis(Registration::Failing(5)), Some(320));
        assert_eq!(millis(Registration::Failing(u32::MAX)), Some(122_000));
        assert_eq!(millis(Registration::Registered), None);
    }
}
