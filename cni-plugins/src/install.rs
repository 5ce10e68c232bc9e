//! Installing the plugins: this program under the name of each; and taking them away again.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use orlop_kernel::nftables::{Batch, Family, Nftables, NftablesError};

use crate::{masquerade, portmap};

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

/// Removes what `install` has put there, and tables that have no container's rules any more; what others use stays.
fn uninstall(folder: &Path, names: &[&str]) -> std::io::Result<()> {
    for (family, table, chains) in portmap::PLACES.into_iter().chain([masquerade::PLACE]) {
        remove_table(family, table, chains).map_err(|error| {
            let what = error.source().map(ToString::to_string).unwrap_or_default();
            std::io::Error::other(format!("remove the table {table}: {error}: {what}"))
        })?;
    }
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

/// Removes a table whose chains have no rules. Fine when it is not there.
fn remove_table(family: Family, table: &str, chains: &[&str]) -> Result<(), NftablesError> {
    let removed = Nftables::open().change::<NftablesError>(|nftables| {
        let mut batch = Batch::default();
        for chain in chains {
            if !nftables.rules(family, table, chain)?.is_empty() {
                return Ok(batch);
            }
        }
        batch.delete_table(family, table);
        Ok(batch)
    });
    match removed {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}

fn is_ours(program: &[u8]) -> bool {
    program.windows(MARK.len()).any(|part| part == MARK)
}
