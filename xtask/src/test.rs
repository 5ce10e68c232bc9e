//! `cargo xtask test`: every test, with its set-up.

use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::workspace::{cache, cargo, path, run as run_command, run_tests_as_root, say};
use crate::{conform, foreign, lint, packages, programs};

/// Installs, builds, lints and runs all tests, or those that match `filter`.
pub fn run(filter: Option<&str>, with_lint: bool) -> Result<()> {
    let began = Instant::now();
    if with_lint {
        // The cheapest check comes first.
        lint::format()?;
    }
    for packages in [packages::TEST, packages::BUILD, packages::SOURCE] {
        packages::ensure(packages)?;
    }
    // Side by side: each has stretches that keep one processor busy.
    let (programs, foreign) = std::thread::scope(|scope| {
        let foreign = scope.spawn(|| foreign::build(&[]));
        let programs = programs::build_with_tests();
        (programs, foreign.join().unwrap_or_else(|_| Err(anyhow!("building the foreign programs panicked"))))
    });
    let programs = programs?;
    foreign?;
    if with_lint {
        lint::clippy()?;
    }
    say("tests");
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.env("PATH", path()).env("ORLOP_PROGRAMS", &programs).env("ORLOP_CACHE", cache()?);
    run_tests_as_root(&mut command);
    if let Some(filter) = filter {
        command.arg("--").arg(filter);
    }
    run_command(&mut command)?;
    if filter.is_none() {
        for suite in conform::Cri::of_every_test() {
            conform::run_built(&suite, &programs)?;
        }
    }
    say(format!("all tests passed in {:.0} s", began.elapsed().as_secs_f64()));
    Ok(())
}
