//! `orlop doctor`: does what a pod needs once, for a moment, and says what is missing and how it is mended.

mod checks;
mod network;
mod runtime;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::layout::Layout;

/// How a check ended.
enum Finding {
    /// All is well; with what was found.
    Fine(String),
    /// It works with less: what was found, and what would be better.
    Less(String, String),
    /// Pods can't run like this: what was found, and what to do.
    Missing(String, String),
}

/// A check.
struct Check {
    name: &'static str,
    look: fn(&Place) -> Finding,
}

/// Where checks may work.
struct Place {
    layout: Layout,
    /// A folder of the doctor's own on the file system of the state.
    scratch: PathBuf,
}

/// In the order of dependence: what comes first explains what comes after it.
const CHECKS: &[Check] = &[
    Check { name: "root", look: checks::root },
    Check { name: "kernel", look: checks::kernel },
    Check { name: "namespaces", look: checks::namespaces },
    Check { name: "mounts", look: checks::mounts },
    Check { name: "overlayfs", look: checks::overlay },
    Check { name: "cgroups", look: checks::cgroups },
    Check { name: "seccomp", look: checks::seccomp },
    Check { name: "network", look: network::links },
    Check { name: "nftables", look: network::nftables },
    Check { name: "forwarding", look: network::forwarding },
    Check { name: "programs", look: checks::programs },
    Check { name: "runtime", look: runtime::configuration },
    Check { name: "user ids", look: runtime::user_namespaces },
    Check { name: "crictl", look: runtime::crictl },
    Check { name: "disk", look: checks::disk },
    Check { name: "files", look: checks::open_files },
    Check { name: "ports", look: network::ports },
];

/// Runs every check and prints what it found.
///
/// # Errors
/// When something is missing without which pods can't run.
pub fn run(layout: &Layout) -> Result<()> {
    let place = Place { layout: layout.clone(), scratch: scratch(layout) };
    let mut missing = Vec::new();
    for check in CHECKS {
        let (mark, found, advice) = match (check.look)(&place) {
            Finding::Fine(found) => ("ok", found, None),
            Finding::Less(found, advice) => ("warn", found, Some(advice)),
            Finding::Missing(found, advice) => {
                missing.push(check.name);
                ("FAIL", found, Some(advice))
            }
        };
        println!("{mark:<5} {:<11} {found}", check.name);
        if let Some(advice) = advice {
            println!("{:<17} {advice}", "");
        }
    }
    let _ = std::fs::remove_dir_all(&place.scratch);
    if !missing.is_empty() {
        bail!("this machine can't run pods yet: {}; what to do stands above", missing.join(", "));
    }
    println!("this machine can run pods");
    Ok(())
}

/// A folder below the state folder, or below the next one above that is there.
fn scratch(layout: &Layout) -> PathBuf {
    let there = layout.state.ancestors().find(|folder| folder.is_dir()).unwrap_or(&layout.state);
    there.join(format!(".orlop-doctor-{}", std::process::id()))
}

/// An error with all its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
