//! Tables of decisions as text: each is computed as a whole and compared with a file in `agent/core/tables`, so that a
//! change of the law shows as a change of lines. `RENEW_TABLES=1 cargo test -p orlop-agent-core tables` writes them anew;
//! what then differs is to be read before it is committed.

use std::path::Path;

use crate::facts::{ContainerFact, ObservedContainer};
use crate::world::World;

mod admissions;
mod backoffs;
mod conditions;
mod ends;
mod lives;
mod phases;
mod probes;
mod restarts;

/// Compares a table with its file.
fn compare(name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tables").join(name);
    if std::env::var_os("RENEW_TABLES").is_some() {
        std::fs::write(&path, table).unwrap();
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<String> = diff(&known, table);
    assert!(
        differing.is_empty(),
        "{} differs; if that is meant, write it anew with RENEW_TABLES=1 and read the difference:\n{}",
        path.display(),
        differing.join("\n")
    );
}

/// Lines that only one of the texts has, at most 40.
fn diff(known: &str, table: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (known.lines().collect(), table.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let fresh = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    let mut lines: Vec<String> = gone.chain(fresh).take(40).collect();
    if lines.is_empty() && known != table {
        lines.push("the order of the lines".to_owned());
    }
    lines
}

/// Puts rows under a heading, in columns that are as wide as their widest cell.
fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join(" | ").trim_end())
    };
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rule: String = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-|-");
    rows.iter().fold(line(&head) + &rule + "\n", |text, row| text + &line(row))
}

/// What a container of a table has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Come {
    /// The runtime has nothing of it.
    Nothing,
    /// Made, not started.
    Made,
    /// The runtime has lost track of it.
    Unknown,
    /// It runs.
    Runs,
    /// It has ended with this code.
    Ended(i32),
}

impl Come {
    fn text(self) -> String {
        match self {
            Come::Nothing => "-".into(),
            Come::Made => "made".into(),
            Come::Unknown => "unknown".into(),
            Come::Runs => "runs".into(),
            Come::Ended(code) => format!("ended {code}"),
        }
    }

    /// Lets a container of the pod come to this, in the sandbox that is there.
    fn happen(self, world: &mut World, name: &str) {
        let fact = match self {
            Come::Nothing => return,
            Come::Made => ContainerFact::Created,
            Come::Unknown => ContainerFact::Unknown,
            Come::Runs => ContainerFact::Running,
            Come::Ended(_) => ContainerFact::Exited,
        };
        let sandbox = world.observed.sandbox().map_or("s0".to_owned(), |sandbox| sandbox.id.clone());
        world.run(name, 0, &sandbox);
        let now = world.now;
        let made: &mut ObservedContainer =
            world.observed.containers.iter_mut().find(|container| container.name == name).unwrap();
        made.fact = fact;
        if let Come::Ended(code) = self {
            made.exit_code = code;
            made.finished_at = Some(now);
        }
    }
}

/// A plan in words: what is done, what the pod is told, when to look again.
fn words(world: &World) -> String {
    let plan = world.plan();
    let mut parts: Vec<String> = plan.actions.iter().map(action).collect();
    match &plan.stop {
        Some(Some(verdict)) => parts.push(format!("END {} {}", verdict.phase.unwrap_or("-"), verdict.reason)),
        Some(None) => parts.push("END".into()),
        None => {}
    }
    if plan.stopped {
        parts.push("STOPPED".into());
    }
    if let Some(at) = plan.wake_at {
        parts.push(format!("wake in {}s", at.duration_since(world.now).as_secs()));
    }
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

fn action(action: &crate::plan::Action) -> String {
    use crate::plan::Action;
    match action {
        Action::SetUpVolumes => "volumes".into(),
        Action::CreateSandbox { attempt } => format!("make sandbox {attempt}"),
        Action::StopSandbox { id, changed } => format!("stop {id}{}", if *changed { " to replace it" } else { "" }),
        Action::RemoveSandbox { id } => format!("remove {id}"),
        Action::EnsureImage { container } => format!("image {container}"),
        Action::StartContainer { container, attempt, replaces, .. } => match replaces {
            Some(id) => format!("start {container} {attempt} in place of {id}"),
            None => format!("start {container} {attempt}"),
        },
        Action::BackOff { container, .. } => format!("back-off {container}"),
        Action::StopContainer { container, reason, grace_seconds, after, .. } => {
            let order = if after.is_empty() { String::new() } else { format!(" after {}", after.join(" ")) };
            format!("stop {container} {reason:?} {grace_seconds}s{order}")
        }
        Action::RemoveContainer { id } => format!("remove {id}"),
        Action::Look => "look".into(),
        Action::TearDown => "tear down".into(),
    }
}
