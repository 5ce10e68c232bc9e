//! busybox with upstream's default configuration, from Debian's source package.
//!
//! Debian's own build lacks applets that conformance tests call, and runs its applets where a file of that name was
//! hidden from it, so that hiding can't be seen.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::packages::{self, as_root};
use crate::workspace::{cache, run, say};

/// Raised when what is below changes the program.
const RECIPE: u32 = 1;

/// The package whose source is built, as dpkg knows it: `cargo xtask` installs it for the ordinary images.
const PACKAGE: &str = "busybox-static";

/// The archive's keys, of the package that every Debian has.
pub const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Builds `bin/busybox` in the cache unless it is there.
pub fn build() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::SOURCE)?;
    let place = cache()?.join("bin");
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let version = read(Command::new("dpkg-query").args(["-W", "-f", "${source:Version}", PACKAGE]))?;
    let stamp_file = place.join(".busybox.built");
    let stamp = format!("{version} {RECIPE}");
    if place.join("busybox").is_file() && std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    say(format!("building busybox from Debian's source package {version}"));
    let work = place.join(".busybox.work");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    fetch(&work, &version)?;
    let source = work.join("source");
    make(&source, &["defconfig"])?;
    // Static: it is the whole file system of an image.
    make(&source, &["-j", &cores(), "LDFLAGS=-static", "busybox"])?;
    std::fs::rename(source.join("busybox"), place.join("busybox")).context("install busybox")?;
    std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    std::fs::write(&stamp_file, stamp).with_context(|| format!("write {}", stamp_file.display()))
}

/// Downloads the source of that version and unpacks it into `source`. apt's own lists stay as they are: it gets a folder
/// of its own with the lists of sources, from where this machine has its packages.
fn fetch(work: &Path, version: &str) -> Result<()> {
    let lists = work.join("lists");
    for folder in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(work.join(folder)).with_context(|| format!("make {folder} in {}", work.display()))?;
    }
    let sources = work.join("sources.list");
    let lines: String = archives()?.lines().map(|line| format!("deb-src [signed-by={KEYS}] {line}\n")).collect();
    std::fs::write(&sources, lines).with_context(|| format!("write {}", sources.display()))?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.current_dir(work).arg("-qq");
        for (name, value) in [("Etc::sourcelist", &sources), ("State::lists", &lists), ("Cache", &work.join("cache"))] {
            command.arg("-o").arg(format!("Dir::{name}={}", value.display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
        command
    };
    run(apt().arg("update"))?;
    let wanted = format!("busybox={version}");
    run(apt().args(["source", "--download-only", &wanted])).with_context(|| {
        format!("the archive has no source of busybox {version}; bring {PACKAGE} up to date: apt-get install {PACKAGE}")
    })?;
    let mut files = std::fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let described = files.find(|path| path.extension().is_some_and(|kind| kind == "dsc"));
    let described = described.with_context(|| format!("apt-get left no .dsc file in {}", work.display()))?;
    let mut unpack = Command::new("dpkg-source");
    // apt has checked the files against the archive's signed lists; the uploader's own key is not on the machine.
    unpack.current_dir(work).args(["--no-check", "-x"]).arg(described).arg("source").stdout(Stdio::null());
    run(&mut unpack)
}

/// `URI suite component` of Debian's own archives, one per line.
pub fn archives() -> Result<String> {
    let ask = || {
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        read(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
            "Origin: Debian",
        ]))
    };
    let mut known = ask()?;
    if known.is_empty() {
        run(as_root("apt-get").args(["update", "-qq"]))?;
        known = ask()?;
    }
    if known.is_empty() {
        bail!("apt knows no archive of Debian: put one into /etc/apt/sources.list");
    }
    Ok(known)
}

/// Runs make; what it says is shown only when it fails.
fn make(source: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("make");
    command.current_dir(source).arg("--silent").args(arguments).stdin(Stdio::null());
    let output = command.output().context("run make")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("make {} in {} ended with {}:\n{said}", arguments.join(" "), source.display(), output.status);
    }
    Ok(())
}

/// What a command prints.
fn read(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}

/// How many compilers run at a time.
fn cores() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).to_string()
}
