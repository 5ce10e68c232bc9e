//! The workspace's folders, and running a command with a clear failure.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where foreign programs are kept, outside the repository: `ORLOP_CACHE`, or `~/.cache/orlop`.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("ORLOP_CACHE") {
        return Ok(PathBuf::from(folder));
    }
    let home = std::env::var_os("HOME").context("neither ORLOP_CACHE nor HOME is set; set one")?;
    Ok(PathBuf::from(home).join(".cache/orlop"))
}

/// The cargo that runs us, without what it told us of our own crate: build scripts watch these variables, and would be run
/// again, with all that is built on them, whenever `cargo` is called by us after it was called by a person.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Folders of programs that are used even where the PATH does not name them.
const MORE_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/go/bin"];

/// Whether a program can be found on the PATH or in the folders beside it.
pub fn have(program: &str) -> bool {
    std::env::split_paths(&path()).any(|folder| folder.join(program).is_file())
}

/// The PATH with the folders beside it, for children.
pub fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).collect::<Vec<_>>();
    let more = MORE_FOLDERS.map(PathBuf::from).into_iter().filter(|folder| !known.contains(folder));
    std::env::join_paths(known.iter().cloned().chain(more)).unwrap_or(path)
}

/// Lets test programs run as root while cargo itself stays ours: namespaces, mounts and cgroups want root.
pub fn run_tests_as_root(command: &mut Command) {
    if !rustix::process::geteuid().is_root() {
        command.env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
            "sudo --preserve-env=ORLOP_PROGRAMS,ORLOP_CACHE,HOME,PATH",
        );
    }
}

/// Says what is being done, for a person who watches.
pub fn say(what: impl AsRef<str>) {
    println!("==> {}", what.as_ref());
}

/// Runs a command with our own output and fails unless it ends with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = words(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// The command as one would type it.
fn words(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}
