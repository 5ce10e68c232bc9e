//! What a run of critest shows to people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{End, Outcome, Spec};

/// Counts, every spec that did not pass, and what was left behind.
#[must_use]
pub fn describe(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut excused: BTreeMap<&str, Vec<&Spec>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for spec in outcome.specs.iter().filter(|spec| spec.end != End::Passed) {
        match spec.excuse(outcome.subject) {
            Some(reason) => excused.entry(reason).or_default().push(spec),
            None => wrong.push(spec),
        }
    }
    for (reason, specs) in &excused {
        let _ = writeln!(text, "{} {}: {reason}", specs.len(), word(specs[0].end));
        for spec in specs {
            let _ = writeln!(text, "    {}", spec.short());
        }
    }
    for spec in &wrong {
        let _ = writeln!(text, "{} {}", word(spec.end).to_uppercase(), spec.short());
        for line in spec.message.lines().take(12) {
            let _ = writeln!(text, "    {line}");
        }
    }
    for left in &outcome.left {
        let _ = writeln!(text, "LEFT BEHIND {left}");
    }
    if !outcome.is_good() {
        let _ = writeln!(text, "the last lines of the server's log:\n{}", outcome.log);
    }
    let count = |end| outcome.specs.iter().filter(|spec| spec.end == end).count();
    let _ = writeln!(
        text,
        "{}: {} passed, {} failed, {} skipped of {}, of which {} for a known reason; {:.0} s",
        outcome.subject.name(),
        count(End::Passed),
        count(End::Failed),
        count(End::Skipped),
        outcome.specs.len(),
        excused.values().map(Vec::len).sum::<usize>(),
        outcome.took.as_secs_f64(),
    );
    text
}

/// Two runs side by side: how each spec ended and how long it took.
#[must_use]
pub fn compare(ours: &Outcome, peer: &Outcome) -> String {
    let cell = |spec: Option<&&Spec>| {
        spec.map_or_else(|| "not run".into(), |spec| format!("{:<7} {:>6.1} s", word(spec.end), spec.seconds))
    };
    let by_name = |outcome: &Outcome| -> BTreeMap<String, usize> {
        outcome.specs.iter().enumerate().map(|(place, spec)| (spec.short().to_string(), place)).collect()
    };
    let (one, other) = (by_name(ours), by_name(peer));
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let mut text = format!("{:<17}{:<17}\n", ours.subject.name(), peer.subject.name());
    for name in names {
        let ours = one.get(name).map(|place| &ours.specs[*place]);
        let peer = other.get(name).map(|place| &peer.specs[*place]);
        let _ = writeln!(text, "{:<17}{:<17}{name}", cell(ours.as_ref()), cell(peer.as_ref()));
    }
    let took = |outcome: &Outcome| format!("{:.0} s", outcome.took.as_secs_f64());
    let _ = writeln!(text, "{:<17}{:<17}all", took(ours), took(peer));
    text
}

fn word(end: End) -> &'static str {
    match end {
        End::Passed => "passed",
        End::Failed => "failed",
        End::Skipped => "skipped",
    }
}
