//! CNI plugins in one program, which does what the name it is called by says.

mod bridge;
mod host_local;
mod install;
mod kit;
mod loopback;
mod masquerade;
mod portmap;

use std::path::Path;
use std::process::ExitCode;

use kit::{Call, CniError, Plugin};

/// The plugins, by the names they are called by.
const PLUGINS: [(&str, &dyn Plugin); 4] = [
    ("bridge", &bridge::Bridge),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("portmap", &portmap::Portmap),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments.first().and_then(|path| Path::new(path).file_name()).unwrap_or_default();
    match PLUGINS.iter().find(|(known, _)| name == *known) {
        Some((name, plugin)) => answer(name, *plugin),
        None => install::run(&arguments[1..], &PLUGINS.map(|(name, _)| name)),
    }
}

/// Does what the environment asks for; the answer, or the error, is all that goes to standard output.
fn answer(name: &str, plugin: &dyn Plugin) -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!(
            "{name} is a CNI plugin (versions {}); runtimes run it with CNI_COMMAND set",
            kit::VERSIONS.join(", ")
        );
        return ExitCode::SUCCESS;
    }
    match Call::read().and_then(|call| kit::carry_out(plugin, &call)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(value)) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", error.to_json());
            ExitCode::FAILURE
        }
    }
}

/// Shorthand of all plugins.
type Result<T> = std::result::Result<T, CniError>;
