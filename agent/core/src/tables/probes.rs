//! Probes: kind × thresholds × a row of outcomes, with what each try changes; and when the first try is due.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;

use super::{compare, render};
use crate::probe::{ProbeChange, ProbeKind, ProbeOutcome, ProbeState, ProbeTiming, probe_timing};

/// Rows of outcomes: success, failure, error, warning.
const OUTCOMES: [&str; 12] = ["s", "f", "e", "w", "ssss", "ffff", "fffs", "sfsf", "ffsff", "fefef", "sesf", "wfwff"];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn timing(success: i32, failure: i32, delay: i32, period: i32) -> ProbeTiming {
    probe_timing(&Probe {
        success_threshold: Some(success),
        failure_threshold: Some(failure),
        initial_delay_seconds: Some(delay),
        period_seconds: Some(period),
        ..Probe::default()
    })
}

fn outcome(letter: char) -> ProbeOutcome {
    match letter {
        's' => ProbeOutcome::Success,
        'w' => ProbeOutcome::Warning("elsewhere".into()),
        'f' => ProbeOutcome::Failure("no".into()),
        _ => ProbeOutcome::Error("broken".into()),
    }
}

fn known(result: Option<bool>) -> &'static str {
    match result {
        None => "-",
        Some(true) => "passed",
        Some(false) => "failed",
    }
}

#[test]
fn results() {
    let mut rows = Vec::new();
    for kind in ProbeKind::ALL {
        for (success, failure) in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 3)] {
            // The API takes another success threshold for readiness only.
            if success > 1 && kind != ProbeKind::Readiness {
                continue;
            }
            for outcomes in OUTCOMES {
                let timing = timing(success, failure, 0, 10);
                let mut state = ProbeState::new(kind, "a0", at(0), &timing, None, at(0));
                let steps: Vec<String> = outcomes.chars().map(|letter| step(&mut state, &timing, letter)).collect();
                let end = if state.on_hold { "on hold" } else { "goes on" };
                rows.push(vec![
                    kind.as_str().to_owned(),
                    success.to_string(),
                    failure.to_string(),
                    outcomes.to_owned(),
                    steps.join(" "),
                    known(state.passing).to_owned(),
                    end.to_owned(),
                ]);
            }
        }
    }
    let head = ["probe", "success", "failure", "outcomes", "each changes", "result", "then"];
    compare("probe-results.txt", &render(&head, &rows));
}

fn step(state: &mut ProbeState, timing: &ProbeTiming, letter: char) -> String {
    if state.on_hold {
        return "#".into();
    }
    let now = state.next_at;
    state.begin(timing, now);
    match state.end(timing, &outcome(letter), now + SignedDuration::from_millis(10)) {
        Some(ProbeChange::Passed) => "PASS",
        Some(ProbeChange::Failed(_)) => "FAIL",
        None => ".",
    }
    .to_owned()
}

#[test]
fn times() {
    let mut rows = Vec::new();
    for kind in ProbeKind::ALL {
        for started in [false, true] {
            for before in [None, Some(false), Some(true)] {
                for (delay, seen) in [(0, 0), (0, 7), (5, 0), (5, 7)] {
                    let timing = timing(1, 3, delay, 10);
                    let mut state = ProbeState::new(kind, "a0", at(100), &timing, before, at(100 + seen));
                    let seconds = |state: &ProbeState| {
                        state.due_at(started).map_or("-".to_owned(), |due| format!("{}s", due.as_second() - 100))
                    };
                    let first = seconds(&state);
                    let now = state.next_at;
                    state.begin(&timing, now);
                    let meanwhile = seconds(&state);
                    // The answer comes after the next try was due.
                    state.end(&timing, &ProbeOutcome::Failure("no".into()), now + SignedDuration::from_secs(12));
                    rows.push(vec![
                        kind.as_str().to_owned(),
                        if started { "started" } else { "-" }.to_owned(),
                        known(before).to_owned(),
                        format!("{delay}s"),
                        format!("{seen}s"),
                        first,
                        meanwhile,
                        seconds(&state),
                    ]);
                }
            }
        }
    }
    let head = ["probe", "container", "known", "delay", "seen after", "due", "during", "after 12s"];
    compare("probe-times.txt", &render(&head, &rows));
}
