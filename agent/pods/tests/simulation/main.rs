//! The whole agent in a world made of dice: pod manager, workers, static pods, mirrors and status writer as they are,
//! on a clock that is set, with a runtime, a disk and an API server that fail, and killed at any step. One seed is one
//! run, always the same.
//!
//! ```text
//! cargo test -p orlop-agent-pods --test simulation               # SEEDS of them (1000)
//! SEED=17 cargo test -p orlop-agent-pods --test simulation no_seed -- --nocapture   # one, with its trace
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

mod api;
mod disk;
mod laws;
mod run;
mod runtime;
mod settled;
mod shapes;
mod sim;
mod turns;
mod user;

use run::{Outcome, simulate};

/// How many seeds are run where `SEEDS` does not say.
const SEEDS: u64 = 1000;
/// How much of the trace is shown with a failure; the seed alone shows all of it.
const SHOWN: usize = 40;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

fn report(seed: u64, outcome: &Outcome) -> String {
    let lines: Vec<&str> =
        outcome.trace.iter().map(String::as_str).filter(|line| !line.contains("   step of ")).collect();
    let from = lines.len().saturating_sub(SHOWN);
    format!(
        "seed {seed} breaks a law: {}\nthe end of its trace:\n{}\n\nrun it alone, with its whole trace:\n  SEED={seed} cargo \
         test -p orlop-agent-pods --test simulation no_seed -- --nocapture\n",
        outcome.broken.join("\n  and "),
        lines[from..].join("\n")
    )
}

/// Runs the seeds on all processors; returns what failed, by seed.
fn run_all(first: u64, count: u64) -> Vec<(u64, String)> {
    let next = AtomicU64::new(first);
    let failures: Mutex<Vec<(u64, String)>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failures.lock().unwrap().len() >= 5 {
                        return;
                    }
                    let outcome = simulate(seed);
                    if !outcome.broken.is_empty() {
                        failures.lock().unwrap().push((seed, report(seed, &outcome)));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    failures
}

#[test]
fn no_seed_breaks_a_law() {
    if let Some(seed) = number("SEED") {
        let outcome = simulate(seed);
        println!("{}", outcome.trace.join("\n"));
        assert!(outcome.broken.is_empty(), "{}", report(seed, &outcome));
        return;
    }
    let (first, count) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let failures = run_all(first, count);
    let texts: Vec<&str> = failures.iter().map(|(_, text)| text.as_str()).collect();
    assert!(texts.is_empty(), "{}", texts.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..12 {
        let (first, second) = (simulate(seed), simulate(seed));
        let at = first.trace.iter().zip(&second.trace).position(|(a, b)| a != b);
        let line = |outcome: &Outcome| at.map(|at| outcome.trace[at].clone());
        assert_eq!(line(&first), line(&second), "seed {seed} differs from line {at:?}");
        assert_eq!((first.steps, first.trace.len()), (second.steps, second.trace.len()), "seed {seed}");
    }
}
