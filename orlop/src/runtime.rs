//! `orlop runtime`: becomes the program of single containers.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Error, Result, anyhow};
use orlop_kernel::{mount, process};
use rustix::fs::{Mode, OFlags};

/// Replaces this process by `orlop-runtime`; returns only why it can't. As root the program is run from a read-only view of
/// its file, which it would else make for itself first.
pub fn become_it(arguments: impl Iterator<Item = OsString>) -> Error {
    match prepare(arguments) {
        Err(error) => error,
        Ok((program, arguments, environment)) => {
            let error = process::exec_descriptor(&program, &arguments, &environment);
            anyhow!(error).context("run orlop-runtime")
        }
    }
}

type Exec = (std::os::fd::OwnedFd, Vec<CString>, Vec<CString>);

fn prepare(arguments: impl Iterator<Item = OsString>) -> Result<Exec> {
    let own = std::env::current_exe().context("find this program")?;
    let path = own.with_file_name("orlop-runtime");
    let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {} (it belongs beside this program)", path.display()))?;
    let program = mount::read_only_view(&file).unwrap_or(file);
    let text = |text: OsString| CString::new(text.into_vec()).context("an argument or variable holds a NUL byte");
    let all = std::iter::once(OsString::from("orlop-runtime")).chain(arguments);
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    Ok((program, all.map(text).collect::<Result<_>>()?, environment.map(text).collect::<Result<_>>()?))
}
