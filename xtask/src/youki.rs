//! youki, a peer of the runtime benchmark: built from its crate, at a fixed version, into the cache.

use anyhow::{Context, Result};

use crate::packages;
use crate::workspace::{cache, cargo, run, say};

/// The version that is measured.
const VERSION: &str = "0.7.0";
/// Both kinds of cgroups: its defaults leave out v1. Nothing that a plain container doesn't need.
const FEATURES: &str = "v1,v2";

/// Builds `bin/youki` in the cache unless it is there.
pub fn build() -> Result<()> {
    let place = cache()?.join("bin");
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let stamp_file = place.join(".youki.built");
    let stamp = format!("{VERSION} {FEATURES}");
    if place.join("youki").is_file() && std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    packages::ensure(packages::BUILD)?;
    say(format!("building youki {VERSION}"));
    let work = place.join(".youki.work");
    let mut install = cargo();
    install.args([
        "install",
        "youki",
        "--locked",
        "--version",
        VERSION,
        "--no-default-features",
        "--features",
        FEATURES,
    ]);
    // A target folder of its own: ours would keep all that it is made of.
    run(install.arg("--root").arg(&work).arg("--target-dir").arg(work.join("target")))?;
    std::fs::rename(work.join("bin/youki"), place.join("youki")).context("install youki")?;
    std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    std::fs::write(&stamp_file, stamp).with_context(|| format!("write {}", stamp_file.display()))
}
