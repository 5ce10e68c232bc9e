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

/// The plugin of a name.
fn plugin(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().find(|(known, _)| *known == name).map(|(_, plugin)| *plugin)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments.first().and_then(|path| Path::new(path).file_name()).unwrap_or_default().to_string_lossy();
    match plugin(&name) {
        Some(plugin) => answer(&name, plugin),
        None => install::run(arguments.get(1..).unwrap_or_default(), &PLUGINS.map(|(name, _)| name)),
    }
}

/// Does what the environment asks for; the answer, or the error, is all that goes to standard output.
fn answer(name: &str, plugin: &dyn Plugin) -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        eprintln!("{name} is a CNI plugin, which runtimes run with CNI_COMMAND set.");
        eprintln!("CNI protocol versions supported: {}", kit::VERSIONS.join(", "));
        return ExitCode::SUCCESS;
    }
    let (version, done) = match Call::read() {
        Ok(call) => (call.version.clone(), kit::carry_out(plugin, &call)),
        Err(error) => (String::new(), Err(error)),
    };
    let code = match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(value)) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{:#}", error.to_json(&version));
            ExitCode::FAILURE
        }
    };
    kit::leave_closing();
    code
}

/// Shorthand of all plugins.
type Result<T> = std::result::Result<T, CniError>;
