//! `cargo xtask guest`: tests on another kernel, in an emulated machine: Debian 12 with systemd, cgroup v2 and AppArmor.
//!
//! The machine's system is built once; what is tested is handed in on a second disk, on which the results come back.

mod machine;
mod payload;
mod script;
mod system;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::workspace::{say, target};
use crate::{foreign, packages, programs};
use machine::{Machine, Outcome};
use payload::{Payload, Step};
use system::System;

/// What is done in the guest.
#[derive(clap::Subcommand)]
pub enum What {
    /// Run tests and critest's specs there; prints each step and what failed.
    Test(Test),
}

/// Options of the tests.
#[derive(clap::Args)]
pub struct Test {
    /// Only the steps whose name contains one of these; without, all of them.
    step: Vec<String>,
    /// The specs of critest to run, by a regular expression; `.` is all of them.
    #[arg(long, value_name = "REGEX", default_value = "AppArmor")]
    focus: String,
    /// Only tests whose name contains this, in each step that is a test program.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Say what the steps are and end.
    #[arg(long)]
    list: bool,
    /// How long all steps together may take.
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    minutes: u64,
}

/// Builds the guest and what it tests, boots it, and fails when a step does.
pub fn run(what: &What) -> Result<()> {
    let What::Test(options) = what;
    let steps: Vec<Step> = Step::all(&options.focus, options.filter.as_deref())
        .into_iter()
        .filter(|step| options.step.is_empty() || options.step.iter().any(|word| step.name.contains(word.as_str())))
        .collect();
    if options.list {
        steps.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    if steps.is_empty() {
        bail!("no step is named so; `cargo xtask guest test --list` names them");
    }
    packages::ensure(packages::TEST)?;
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::GUEST)?;
    let programs = programs::build_beside_tests()?;
    foreign::build(&["cri-tools".into(), "kubernetes".into(), "busybox".into(), "runc".into()])?;
    let system = System::build()?;
    let folder = target().join("guest");
    let payload = Payload::build(&folder, &programs, &steps)?;
    let began = Instant::now();
    say(format!("booting the guest; what it says will be in {}", folder.display()));
    let limit = Duration::from_secs(options.minutes * 60);
    let outcome = Machine { system: &system, payload: &payload, folder: &folder }.run(&steps, limit)?;
    payload.fetch_results(&folder)?;
    report(&outcome, began.elapsed())
}

/// One line per step; the error names those that failed.
fn report(outcome: &Outcome, took: Duration) -> Result<()> {
    println!();
    for ended in &outcome.ended {
        let word = if ended.code == 0 { "ok".into() } else { format!("FAILED with {}", ended.code) };
        println!("{:24} {word} in {} s", ended.name, ended.seconds);
    }
    let failed: Vec<&str> =
        outcome.ended.iter().filter(|ended| ended.code != 0).map(|ended| ended.name.as_str()).collect();
    if !failed.is_empty() {
        bail!("failed in the guest: {}", failed.join(", "));
    }
    say(format!("all steps passed in the guest in {:.0} s", took.as_secs_f64()));
    Ok(())
}
