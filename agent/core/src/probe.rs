//! The state machine of one probe of one container instance; time and outcomes are passed in.
//!
//! ```text
//!  Waiting --due--> Probing --outcome--> Waiting ... threshold reached --> result changes
//!                                  failure of liveness/startup at the threshold --> OnHold (until the container is another)
//! ```

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Probe};

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds back the other two until it succeeds; restarts the container when it fails.
    Startup,
    /// Restarts the container when it fails.
    Liveness,
    /// Tells whether the container takes traffic.
    Readiness,
}

impl ProbeKind {
    /// All kinds, the startup probe first.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// Its name at the start of a message.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    /// The probe of that kind in a container's definition.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Times and thresholds of a probe, with the API's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTiming {
    /// Wait after the container's start.
    pub initial_delay: SignedDuration,
    /// Between two tries.
    pub period: SignedDuration,
    /// Deadline of one try.
    pub timeout: SignedDuration,
    /// Successes in a row that count.
    pub success_threshold: u32,
    /// Failures in a row that count.
    pub failure_threshold: u32,
}

/// Timing of a probe.
pub fn probe_timing(probe: &Probe) -> ProbeTiming {
    let seconds = |value: Option<i32>, default: i32| {
        SignedDuration::from_secs(i64::from(value.filter(|v| *v > 0).unwrap_or(default)))
    };
    let count = |value: Option<i32>, default: u32| value.filter(|v| *v > 0).map_or(default, |v| v as u32);
    ProbeTiming {
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        success_threshold: count(probe.success_threshold, 1),
        failure_threshold: count(probe.failure_threshold, 3),
    }
}

/// How one try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It succeeded.
    Success,
    /// It succeeded, but not as it should (a redirect to another host).
    Warning(String),
    /// It failed.
    Failure(String),
    /// It could not be made; counts as nothing.
    Error(String),
}

/// What a try changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeChange {
    /// The result is now success.
    Passed,
    /// The result is now failure, with the last message.
    Failed(String),
}

/// A probe at work on one container instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeState {
    /// Which probe.
    pub kind: ProbeKind,
    /// The instance; another instance gets a new state.
    pub container_id: String,
    /// The result that counts: `None` while unknown (startup).
    pub passing: Option<bool>,
    /// When the next try is due.
    pub next_at: Timestamp,
    /// A try is under way.
    pub probing: bool,
    /// No more tries for this instance: it is about to be restarted.
    pub on_hold: bool,
    run_success: bool,
    run_length: u32,
}

impl ProbeState {
    /// A new state for an instance that was started at `started_at`. `known` is the result from before a restart of
    /// the agent; the probe then starts with it, otherwise with the kind's initial result: readiness fails,
    /// liveness passes, startup is unknown.
    pub fn new(
        kind: ProbeKind,
        container_id: &str,
        started_at: Timestamp,
        timing: &ProbeTiming,
        known: Option<bool>,
        now: Timestamp,
    ) -> ProbeState {
        let initial = match kind {
            ProbeKind::Startup => None,
            ProbeKind::Liveness => Some(true),
            ProbeKind::Readiness => Some(false),
        };
        let first = started_at.saturating_add(timing.initial_delay).unwrap_or(started_at);
        ProbeState {
            kind,
            container_id: container_id.to_owned(),
            passing: known.or(initial),
            next_at: first.max(now),
            probing: false,
            on_hold: kind == ProbeKind::Startup && known == Some(true),
            run_success: false,
            run_length: 0,
        }
    }

    /// When to wake for it, unless it waits for something else. `started` is the result of the startup probe.
    pub fn due_at(&self, started: bool) -> Option<Timestamp> {
        let wanted = match self.kind {
            ProbeKind::Startup => !started,
            ProbeKind::Liveness | ProbeKind::Readiness => started,
        };
        (wanted && !self.probing && !self.on_hold).then_some(self.next_at)
    }

    /// A try begins at `now`.
    pub fn begin(&mut self, timing: &ProbeTiming, now: Timestamp) {
        self.probing = true;
        self.next_at = now.saturating_add(timing.period).unwrap_or(now);
    }

    /// A try ended. Returns the change of the result, if it changed or (on failure) was reached again.
    pub fn end(&mut self, timing: &ProbeTiming, outcome: &ProbeOutcome, now: Timestamp) -> Option<ProbeChange> {
        self.probing = false;
        self.next_at = self.next_at.max(now);
        let (success, message) = match outcome {
            ProbeOutcome::Success | ProbeOutcome::Warning(_) => (true, String::new()),
            ProbeOutcome::Failure(message) => (false, message.clone()),
            ProbeOutcome::Error(_) => return None,
        };
        if self.run_length > 0 && self.run_success == success {
            self.run_length = self.run_length.saturating_add(1);
        } else {
            self.run_success = success;
            self.run_length = 1;
        }
        let threshold = if success { timing.success_threshold } else { timing.failure_threshold };
        if self.run_length < threshold {
            return None;
        }
        let changed = self.passing != Some(success);
        self.passing = Some(success);
        if self.kind == ProbeKind::Startup && success {
            self.on_hold = true;
        }
        if !success && self.kind != ProbeKind::Readiness {
            self.on_hold = true;
            self.run_length = 0;
            return Some(ProbeChange::Failed(message));
        }
        changed.then_some(if success { ProbeChange::Passed } else { ProbeChange::Failed(message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn timing(success: i32, failure: i32) -> ProbeTiming {
        probe_timing(&Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            initial_delay_seconds: Some(5),
            ..Probe::default()
        })
    }

    /// Feeds `s`, `f`, `e`, `w` and writes what each try changed: `+`, `-` or `.`; `#` once on hold.
    fn script(kind: ProbeKind, timing: &ProbeTiming, tries: &str) -> String {
        let mut state = ProbeState::new(kind, "id", at(0), timing, None, at(0));
        let mut now = 0;
        tries
            .chars()
            .map(|try_| {
                if state.on_hold {
                    return '#';
                }
                now += 10;
                state.begin(timing, at(now));
                let outcome = match try_ {
                    's' => ProbeOutcome::Success,
                    'w' => ProbeOutcome::Warning("elsewhere".into()),
                    'f' => ProbeOutcome::Failure("no".into()),
                    _ => ProbeOutcome::Error("broken".into()),
                };
                match state.end(timing, &outcome, at(now)) {
                    Some(ProbeChange::Passed) => '+',
                    Some(ProbeChange::Failed(_)) => '-',
                    None => '.',
                }
            })
            .collect()
    }

    #[test]
    fn thresholds_count_runs_of_equal_outcomes() {
        for (kind, success, failure, tries, want) in [
            (ProbeKind::Liveness, 1, 3, "sffsfffs", "......-#"),
            (ProbeKind::Liveness, 1, 1, "fs", "-#"),
            (ProbeKind::Readiness, 1, 3, "ssfffsf", "+...-+."),
            (ProbeKind::Readiness, 2, 1, "sssfss", ".+.-.+"),
            (ProbeKind::Readiness, 1, 3, "sffeff", "+...-."),
            (ProbeKind::Startup, 1, 3, "ffs", "..+"),
            (ProbeKind::Startup, 1, 2, "ffs", ".-#"),
            (ProbeKind::Startup, 1, 3, "ses", "+##"),
            (ProbeKind::Readiness, 1, 3, "w", "+"),
        ] {
            assert_eq!(script(kind, &timing(success, failure), tries), want, "{kind:?} {success} {failure} {tries}");
        }
    }

    #[test]
    fn only_the_startup_probe_runs_before_the_container_has_started() {
        let timing = timing(1, 3);
        for (kind, started, due) in [
            (ProbeKind::Startup, false, true),
            (ProbeKind::Startup, true, false),
            (ProbeKind::Liveness, false, false),
            (ProbeKind::Liveness, true, true),
            (ProbeKind::Readiness, false, false),
            (ProbeKind::Readiness, true, true),
        ] {
            let state = ProbeState::new(kind, "id", at(100), &timing, None, at(101));
            assert_eq!(state.due_at(started), due.then(|| at(105)), "{kind:?} {started}");
        }
    }

    #[test]
    fn a_known_result_survives_a_restart_of_the_agent() {
        let timing = timing(1, 3);
        assert_eq!(ProbeState::new(ProbeKind::Readiness, "id", at(0), &timing, Some(true), at(50)).passing, Some(true));
        let startup = ProbeState::new(ProbeKind::Startup, "id", at(0), &timing, Some(true), at(50));
        assert!(startup.on_hold && startup.passing == Some(true));
    }
}
