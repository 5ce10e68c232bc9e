//! Installing the plugins: this program under the name of each; and taking them away again.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// In every build of this program, so that one of another version is known as ours.
#[used]
static MARK: [u8; 32] = *b"orlop-cni-plugins: own program\0\0";

/// What the program does when it is called by its own name.
pub(crate) fn run(arguments: &[OsString], names: &[&str]) -> ExitCode {
    let [command, folder] = arguments else { return usage(names) };
    let work = match command.to_str() {
        Some("install") => install,
        Some("uninstall") => uninstall,
        _ => return usage(names),
    };
    match work(Path::new(folder), names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} the plugins, folder {folder:?}: {error}", command.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

fn usage(names: &[&str]) -> ExitCode {
    eprintln!("usage: orlop-cni-plugins install|uninstall DIR\nCNI plugins: {}", names.join(", "));
    ExitCode::from(2)
}

/// One copy and a hard link for each name; what is the same already is left alone, and so is a program of others.
fn install(folder: &Path, names: &[&str]) -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    std::fs::create_dir_all(folder)?;
    let program = std::fs::read(&own)?;
    let stale = |name: &&&str| match std::fs::read(folder.join(**name)) {
        Ok(there) => there != program && is_ours(&there),
        Err(_) => true,
    };
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

/// Removes what `install` has put there; programs of others stay.
fn uninstall(folder: &Path, names: &[&str]) -> std::io::Result<()> {
    for name in names {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(there) if is_ours(&there) => std::fs::remove_file(&path)?,
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_ours(program: &[u8]) -> bool {
    program.windows(MARK.len()).any(|part| part == MARK)
}
