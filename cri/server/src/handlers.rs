//! Runtime handlers: the names by which a pod asks for a runtime other than the built-in one.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orlop_container::protocol::RuntimeProgram;
use orlop_proto::cri;

use crate::error::{RpcError, argument};

/// The built-in runtime by its name, for those who give it one.
const BUILT_IN: &str = "orlop";

/// The handlers that are configured, by name.
pub(crate) struct Handlers(BTreeMap<String, RuntimeProgram>);

/// Whether the handler of that name is the built-in runtime.
pub(crate) fn is_built_in(name: &str) -> bool {
    matches!(name, "" | BUILT_IN)
}

impl Handlers {
    /// Takes the configured ones, and tells of those whose program is missing.
    pub(crate) fn new(configured: &BTreeMap<String, RuntimeProgram>) -> Handlers {
        for (name, runtime) in configured.iter().filter(|(_, runtime)| !is_executable(&runtime.program)) {
            tracing::warn!(
                handler = name,
                program = ?runtime.program,
                "no program is there; pods with this runtime handler are refused until it is"
            );
        }
        Handlers(configured.clone())
    }

    /// The program behind a handler; none for the built-in runtime.
    pub(crate) fn find(&self, name: &str) -> Result<Option<RuntimeProgram>, RpcError> {
        if is_built_in(name) {
            return Ok(None);
        }
        let Some(runtime) = self.0.get(name) else {
            let known: Vec<&str> = self.0.keys().map(String::as_str).chain([BUILT_IN]).collect();
            let message = format!("no runtime handler {name:?} on this node; there are {}", known.join(", "));
            return Err(argument("runtime_handler", message));
        };
        let program = &runtime.program;
        if !is_executable(program) {
            let message = format!("{name:?}: no program {}; install it or change the configuration", program.display());
            return Err(argument("runtime_handler", message));
        }
        Ok(Some(runtime.clone()))
    }

    /// The handlers that can be used, the built-in runtime first. What mounts and ids need of the kernel is done before
    /// a program runs, so all have the same.
    pub(crate) fn list(&self, features: cri::RuntimeHandlerFeatures) -> Vec<cri::RuntimeHandler> {
        let usable = self.0.iter().filter(|(_, runtime)| is_executable(&runtime.program)).map(|(name, _)| name.clone());
        let handler = |name| cri::RuntimeHandler { name, features: Some(features) };
        [String::new()].into_iter().chain(usable).map(handler).collect()
    }
}

fn is_executable(program: &Path) -> bool {
    std::fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_found_by_name() {
        let runtime =
            |program: &str| RuntimeProgram { program: program.into(), root: "/r".into(), systemd_cgroup: false };
        let configured = [("there", "/bin/true"), ("gone", "/no/such/program")];
        let handlers = Handlers::new(&configured.map(|(name, path)| (name.to_string(), runtime(path))).into());
        for (name, words) in [("other", "gone, there, orlop"), ("gone", "/no/such/program")] {
            let said = handlers.find(name).expect_err(words).to_string();
            assert!(said.contains(words) && said.starts_with("runtime_handler"), "{said}");
        }
        assert_eq!(handlers.find("there").unwrap(), Some(runtime("/bin/true")));
        assert_eq!((handlers.find("").unwrap(), handlers.find("orlop").unwrap()), (None, None));
        let names: Vec<String> = handlers.list(Default::default()).into_iter().map(|handler| handler.name).collect();
        assert_eq!(names, ["", "there"]);
    }
}
