//! Installing the plugins: this program under the name of each.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// What the program does when it is called by its own name.
pub(crate) fn run(arguments: &[OsString], names: &[&str]) -> ExitCode {
    let [command, folder] = arguments else { return usage(names) };
    if command != "install" {
        return usage(names);
    }
    match install(Path::new(folder), names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("install the plugins into {folder:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(names: &[&str]) -> ExitCode {
    eprintln!("usage: orlop-cni-plugins install DIR\nCNI plugins: {}", names.join(", "));
    ExitCode::from(2)
}

/// One copy and a hard link for each name; what is the same already is left alone.
fn install(folder: &Path, names: &[&str]) -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    std::fs::create_dir_all(folder)?;
    let program = std::fs::read(&own)?;
    let stale = |name: &&&str| std::fs::read(folder.join(**name)).map_or(true, |there| there != program);
    let stale: Vec<_> = names.iter().filter(stale).collect();
    if stale.is_empty() {
        return Ok(());
    }
    // A plugin may be running: its file is never written to, only replaced.
    let fresh = folder.join(format!(".orlop-{}", std::process::id()));
    std::fs::copy(&own, &fresh)?;
    let linked = stale.iter().try_for_each(|name| {
        let link = folder.join(format!(".{name}-{}", std::process::id()));
        std::fs::hard_link(&fresh, &link)?;
        std::fs::rename(&link, folder.join(name))
    });
    std::fs::remove_file(&fresh)?;
    linked
}
