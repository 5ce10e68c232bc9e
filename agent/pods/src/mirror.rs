//! Keeping the API's mirror pods as the static pods are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::{MirrorPods, PortError};
use orlop_agent_core::static_pods::{mirror_matches, mirror_pod};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::pace::Pace;

const RETRY: Duration = Duration::from_secs(2);

type Name = (String, String);

/// What to do for one mirror pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MirrorAction {
    Create(Box<Pod>),
    Delete { namespace: String, name: String, uid: String },
}

/// Namespace and name of a pod.
pub(crate) fn full_name(pod: &Pod) -> Name {
    (containers::namespace(pod).to_owned(), containers::name(pod).to_owned())
}

/// What makes the mirrors match: mirrors without a static pod, of another version or being deleted go, and those that
/// are missing are made.
pub(crate) fn plan_mirrors(
    statics: &BTreeMap<String, Arc<Pod>>,
    mirrors: &BTreeMap<Name, Arc<Pod>>,
) -> Vec<(Name, MirrorAction)> {
    let mut actions = Vec::new();
    let wanted: BTreeMap<Name, &Arc<Pod>> = statics.values().map(|pod| (full_name(pod), pod)).collect();
    for (name, mirror) in mirrors {
        let good = wanted.get(name).is_some_and(|pod| mirror_matches(mirror, pod))
            && mirror.metadata.deletion_timestamp.is_none();
        if !good {
            let uid = containers::uid(mirror).to_owned();
            actions.push((name.clone(), MirrorAction::Delete { namespace: name.0.clone(), name: name.1.clone(), uid }));
        }
    }
    for (name, pod) in wanted {
        if !mirrors.contains_key(&name) {
            actions.push((name, MirrorAction::Create(Box::new(mirror_pod(pod)))));
        }
    }
    actions
}

/// Does what is planned, one action per name at a time.
pub(crate) struct MirrorKeeper {
    port: Arc<dyn MirrorPods>,
    under_way: HashSet<Name>,
    retry_at: HashMap<Name, Instant>,
    done: mpsc::UnboundedSender<(Name, Result<(), PortError>)>,
    pace: Pace,
}

impl MirrorKeeper {
    pub(crate) fn new(
        port: Arc<dyn MirrorPods>,
        done: mpsc::UnboundedSender<(Name, Result<(), PortError>)>,
        pace: Pace,
    ) -> MirrorKeeper {
        MirrorKeeper { port, under_way: HashSet::new(), retry_at: HashMap::new(), done, pace }
    }

    /// Begins the actions that are not under way and whose last failure is long enough ago. Returns when to come again.
    pub(crate) fn begin(&mut self, actions: Vec<(Name, MirrorAction)>) -> Option<Instant> {
        let now = Instant::now();
        let mut again: Option<Instant> = None;
        let names: HashSet<Name> = actions.iter().map(|(name, _)| name.clone()).collect();
        self.retry_at.retain(|name, _| names.contains(name));
        for (name, action) in actions {
            if self.under_way.contains(&name) {
                continue;
            }
            if let Some(at) = self.retry_at.get(&name).filter(|at| **at > now) {
                again = Some(again.map_or(*at, |known| known.min(*at)));
                continue;
            }
            self.under_way.insert(name.clone());
            let (port, done) = (self.port.clone(), self.done.clone());
            tokio::spawn(self.pace.task("mirror", async move {
                let result = match &action {
                    MirrorAction::Create(pod) => port.create(pod).await,
                    MirrorAction::Delete { namespace, name, uid } => port.delete(namespace, name, uid).await,
                };
                let _ = done.send((name, result));
            }));
        }
        again
    }

    /// An action ended. The API's next news tell whether it worked; until then it is not repeated.
    pub(crate) fn ended(&mut self, name: Name, result: Result<(), PortError>) {
        self.under_way.remove(&name);
        if let Err(error) = &result {
            tracing::debug!(namespace = name.0, pod = name.1, %error, "a mirror pod could not be brought in line");
        }
        self.retry_at.insert(name, Instant::now() + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn static_set() -> BTreeMap<String, Arc<Pod>> {
        let definition = serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        let pod = orlop_agent_core::static_pods::static_pod(&definition, "file:/x", "n", jiff::Timestamp::UNIX_EPOCH)
            .unwrap();
        BTreeMap::from([(containers::uid(&pod).to_owned(), Arc::new(pod))])
    }

    fn shown(statics: &BTreeMap<String, Arc<Pod>>) -> Pod {
        let mut mirror = mirror_pod(statics.values().next().unwrap());
        mirror.metadata.uid = Some("m1".into());
        mirror
    }

    #[test]
    fn mirrors_follow_static_pods() {
        let statics = static_set();
        let mirrors = |pod: Pod| BTreeMap::from([(full_name(&pod), Arc::new(pod))]);
        assert!(matches!(&plan_mirrors(&statics, &BTreeMap::new())[..], [(_, MirrorAction::Create(_))]));
        assert!(plan_mirrors(&statics, &mirrors(shown(&statics))).is_empty());
        let mut old = shown(&statics);
        old.metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert(orlop_agent_core::labels::CONFIG_MIRROR.into(), "other".into());
        let mut deleted = shown(&statics);
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        for mirror in [old, deleted] {
            assert!(matches!(&plan_mirrors(&statics, &mirrors(mirror))[..], [(_, MirrorAction::Delete { .. })]));
        }
        assert!(matches!(
            &plan_mirrors(&BTreeMap::new(), &mirrors(shown(&statics)))[..],
            [(_, MirrorAction::Delete { .. })]
        ));
    }
}
