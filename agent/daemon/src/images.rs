//! The runtime, as the node asks it.

use std::time::Duration;

use orlop_agent_core::ports::PortFuture;
use orlop_agent_core::runtime::{self, Runtime};
use orlop_agent_node::{ImageFact, RuntimeHandlerFact, RuntimeProbe, RuntimeState};
use orlop_agent_runtime::CriRuntime;

/// How long an answer may take: the node's status must not wait for a stuck runtime.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The node's questions, put to a CRI runtime.
pub(crate) struct CriProbe {
    pub(crate) runtime: CriRuntime,
}

impl RuntimeProbe for CriProbe {
    fn state(&self) -> PortFuture<'_, Result<RuntimeState, String>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(PROBE_DEADLINE, self.runtime.status()).await;
            let status = asked.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
            let (name, version) = split_version(&self.runtime.name_and_version());
            let handler = |(name, (recursive_read_only_mounts, user_namespaces))| RuntimeHandlerFact {
                name,
                recursive_read_only_mounts,
                user_namespaces,
            };
            Ok(RuntimeState {
                name,
                version,
                runtime_problem: status.runtime.map(|text| without("RuntimeReady=false ", text)),
                network_problem: status.network.map(|text| without("NetworkReady=false ", text)),
                handlers: status.handlers.into_iter().map(handler).collect(),
                supplemental_groups_policy: status.supplemental_groups_policy,
            })
        })
    }

    fn images(&self) -> PortFuture<'_, Result<Vec<ImageFact>, String>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(PROBE_DEADLINE, self.runtime.list_images()).await;
            let images = asked.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
            let fact = |image: runtime::ImageFact| {
                let names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).collect();
                // An image without a name is shown by its id.
                let names = if names.is_empty() { vec![image.id] } else { names };
                ImageFact { names, size_bytes: i64::try_from(image.size).unwrap_or(i64::MAX) }
            };
            Ok(images.into_iter().map(fact).collect())
        })
    }
}

/// The node's status says which condition it is by itself.
fn without(prefix: &str, text: String) -> String {
    text.strip_prefix(prefix).map_or(text.clone(), str::to_owned)
}

fn split_version(text: &str) -> (String, String) {
    let (name, version) = text.split_once("://").unwrap_or((text, ""));
    (name.to_owned(), version.to_owned())
}
