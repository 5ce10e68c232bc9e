//! Runtime handlers: the names by which a pod asks for a runtime other than the built-in one.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use orlop_container::protocol::RuntimeProgram;
use orlop_proto::cri;

use crate::error::{RpcError, argument};

/// The built-in runtime by its name, for those who give it one.
const BUILT_IN: &str = "orlop";
/// How long a program may take to tell its features.
const FEATURES_TIME: Duration = Duration::from_secs(5);

/// The handlers that are configured, by name.
pub(crate) struct Handlers(BTreeMap<String, Handler>);

struct Handler {
    runtime: RuntimeProgram,
    /// It can make a mount read-only with all that is mounted below.
    recursive_read_only: bool,
}

impl Handlers {
    /// Asks each program what it can do.
    pub(crate) async fn open(configured: &BTreeMap<String, RuntimeProgram>) -> Handlers {
        let mut all = BTreeMap::new();
        for (name, runtime) in configured {
            if !is_executable(&runtime.program) {
                tracing::warn!(
                    handler = name,
                    program = ?runtime.program,
                    "no program is there; pods with this runtime handler are refused until it is"
                );
            }
            let recursive_read_only = can_recursive_read_only(&runtime.program).await;
            all.insert(name.clone(), Handler { runtime: runtime.clone(), recursive_read_only });
        }
        Handlers(all)
    }

    /// The program behind a handler; none for the built-in runtime.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&RuntimeProgram>, RpcError> {
        if matches!(name, "" | BUILT_IN) {
            return Ok(None);
        }
        let Some(handler) = self.0.get(name) else {
            let known: Vec<&str> = self.0.keys().map(String::as_str).chain([BUILT_IN]).collect();
            let message = format!("no runtime handler {name:?} on this node; there are {}", known.join(", "));
            return Err(argument("runtime_handler", message));
        };
        let program = &handler.runtime.program;
        if !is_executable(program) {
            let message = format!("{name:?}: no program {}; install it or change the configuration", program.display());
            return Err(argument("runtime_handler", message));
        }
        Ok(Some(&handler.runtime))
    }

    /// Whether containers of a handler can have mounts that are read-only with all below.
    pub(crate) fn can_recursive_read_only(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(|handler| handler.recursive_read_only)
    }

    /// The handlers that can be used, the built-in runtime first.
    pub(crate) fn list(&self, built_in: cri::RuntimeHandlerFeatures) -> Vec<cri::RuntimeHandler> {
        let mut list = vec![cri::RuntimeHandler { name: String::new(), features: Some(built_in) }];
        let usable = self.0.iter().filter(|(_, handler)| is_executable(&handler.runtime.program));
        list.extend(usable.map(|(name, handler)| {
            let features = cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only,
                user_namespaces: false,
            };
            cri::RuntimeHandler { name: name.clone(), features: Some(features) }
        }));
        list
    }
}

fn is_executable(program: &Path) -> bool {
    std::fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What `features` of the program says of mounts; one without that verb says nothing.
async fn can_recursive_read_only(program: &Path) -> bool {
    let mut command = tokio::process::Command::new(program);
    command.arg("features").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(FEATURES_TIME, command.output()).await {
        Ok(Ok(output)) if output.status.success() => has_rro(&output.stdout),
        _ => false,
    }
}

fn has_rro(features: &[u8]) -> bool {
    let features: serde_json::Value = serde_json::from_slice(features).unwrap_or_default();
    features["mountOptions"].as_array().is_some_and(|options| options.iter().any(|option| option == "rro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handlers_are_found_by_name() {
        let runtime = |program: &str| RuntimeProgram { program: program.into(), root: "/r".into() };
        let configured = [("there", "/bin/true"), ("gone", "/no/such/program")];
        let handlers = Handlers::open(&configured.map(|(name, path)| (name.to_string(), runtime(path))).into()).await;
        for (name, words) in [("other", "gone, there, orlop"), ("gone", "/no/such/program")] {
            let said = handlers.find(name).expect_err(words).to_string();
            assert!(said.contains(words) && said.starts_with("runtime_handler"), "{said}");
        }
        assert_eq!(handlers.find("there").unwrap(), Some(&runtime("/bin/true")));
        assert_eq!((handlers.find("").unwrap(), handlers.find("orlop").unwrap()), (None, None));
        let names: Vec<String> = handlers.list(Default::default()).into_iter().map(|handler| handler.name).collect();
        assert_eq!(names, ["", "there"]);
        assert!(handlers.can_recursive_read_only("") && !handlers.can_recursive_read_only("there"));
    }

    #[test]
    fn features_name_their_mount_options() {
        for (text, rro) in
            [(r#"{"mountOptions":["ro","rro"]}"#, true), (r#"{"mountOptions":["ro"]}"#, false), ("x", false)]
        {
            assert_eq!(has_rro(text.as_bytes()), rro, "{text}");
        }
    }
}
