//! Our own programs: built in the profile each one wants and gathered in one folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::packages;
use crate::workspace::{cargo, root, run, say, target};

/// The static target of what is loaded once per pod or per call.
const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";
/// The programs built for it.
const STATIC_PROGRAMS: [&str; 5] = ["orlop-shim", "orlop-pause", "orlop-runtime", "orlop-cni-plugins", "orlop-hello"];

/// Builds all programs and returns the folder that holds them.
pub fn build() -> Result<PathBuf> {
    build_with("dev")
}

/// The same with `orlop` itself in another profile (`ship` for what is measured).
pub fn build_with(profile: &str) -> Result<PathBuf> {
    build_small()?;
    say(format!("building orlop (profile {profile})"));
    run(cargo().args(["build", "--package", "orlop", "--profile", profile]))?;
    gather(profile)
}

/// The same with every test program: one build with one set of features, so that no library is compiled twice.
pub fn build_with_tests() -> Result<PathBuf> {
    build_small()?;
    say("building orlop and all tests");
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    gather("dev")
}

/// The same with the features of test programs alone: a part of them is built next.
pub fn build_beside_tests() -> Result<PathBuf> {
    build_small()?;
    say("building orlop");
    // It is a test program of some kind that makes cargo heed what tests depend on.
    run(cargo().args(["build", "--workspace", "--bins", "--test", "image_storages"]))?;
    gather("dev")
}

/// Builds what is small and static.
fn build_small() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    ensure_static_target()?;
    say("building orlop-shim, orlop-pause, orlop-runtime, orlop-cni-plugins and the sample (small, static)");
    let mut small = cargo();
    small.args(["build", "--profile", "small", "--target", STATIC_TARGET]);
    for program in STATIC_PROGRAMS {
        small.args(["--package", program]);
    }
    run(&mut small)
}

/// Puts all programs side by side.
fn gather(profile: &str) -> Result<PathBuf> {
    let folder = target().join("programs").join(profile);
    std::fs::create_dir_all(&folder)?;
    let built = target().join(if profile == "dev" { "debug" } else { profile });
    install(&built.join("orlop"), &folder)?;
    for program in STATIC_PROGRAMS {
        install(&target().join(STATIC_TARGET).join("small").join(program), &folder)?;
    }
    Ok(folder)
}

/// Copies a program by a new file and a rename, so that one that runs is never written to.
fn install(program: &Path, folder: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    let (fresh, place) = (folder.join(".new"), folder.join(name));
    std::fs::copy(program, &fresh).with_context(|| format!("copy {}", program.display()))?;
    std::fs::rename(&fresh, &place).with_context(|| format!("install {}", place.display()))
}

/// Adds the static target to the toolchain where it is missing.
fn ensure_static_target() -> Result<()> {
    let sysroot =
        Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()).output().context("run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    if sysroot.join("lib/rustlib").join(STATIC_TARGET).is_dir() {
        return Ok(());
    }
    say(format!("adding the Rust target {STATIC_TARGET}"));
    run(Command::new("rustup").args(["target", "add", STATIC_TARGET]).current_dir(root()).stdin(Stdio::null()))
}
