//! critest against `orlop cri`, against containerd with runc, or against both side by side. `cargo xtask conform cri`
//! builds what it needs and runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use orlop_tests::critest::{Options, Outcome, Subject, compare, describe, run};

fn main() -> ExitCode {
    let (subjects, options) = match read(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    let mut outcomes = Vec::new();
    for subject in subjects {
        println!("critest on {}: this takes minutes", subject.name());
        let keep = options.keep.as_ref().map(|folder| folder.join(subject.name()));
        match run(subject, &Options { keep, ..options.clone() }) {
            Ok(outcome) => {
                print!("{}", describe(&outcome));
                outcomes.push(outcome);
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let [ours, peer] = &outcomes[..] {
        print!("{}", compare(ours, peer));
    }
    if outcomes.iter().all(Outcome::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the arguments ask for.
fn read(mut arguments: impl Iterator<Item = String>) -> Result<(Vec<Subject>, Options), String> {
    let mut subjects = vec![Subject::Orlop];
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--peer" => subjects = vec![Subject::Containerd],
            "--compare" => subjects = vec![Subject::Orlop, Subject::Containerd],
            "--handler" => options.handler = Some(value()?),
            "--focus" => options.focus = Some(value()?),
            "--critest" => options.critest = Some(PathBuf::from(value()?)),
            "--keep" => options.keep = Some(PathBuf::from(value()?)),
            "--websocket" => options.websocket = true,
            other => return Err(format!("unknown argument {other}; `cargo xtask conform cri --help` names them")),
        }
    }
    Ok((subjects, options))
}
