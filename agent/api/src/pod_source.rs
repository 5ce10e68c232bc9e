//! The pods of this node as the API server has them, as one value that is replaced on each change.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use orlop_agent_core::ports::PodSet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::ApiClients;
use crate::list_watch::{Change, Next, follow};

/// Follows `pods?fieldSelector=spec.nodeName=<node>` until cancelled. Until the first complete list the set is not
/// `synced`; while the API server is away the last set stays.
pub fn follow_pods(clients: &ApiClients, node_name: &str, cancel: CancellationToken) -> watch::Receiver<Arc<PodSet>> {
    let (sender, receiver) = watch::channel(Arc::new(PodSet::default()));
    let api: Api<Pod> = Api::all(clients.watches.clone());
    let selector = format!("spec.nodeName={node_name}");
    let pace = clients.pace.clone();
    tokio::spawn(clients.pace.task("pod source", async move {
        let mut away = false;
        let following = follow("pods", api, Some(&selector), &pace.chance, |change| {
            match &change {
                Change::Failed(error) if !away => {
                    warn!(%error, "pods can't be read from the API server; what is known stays in force");
                    away = true;
                }
                Change::Failed(_) => {}
                _ if away => {
                    info!("the API server answers again");
                    away = false;
                }
                _ => {}
            }
            sender.send_if_modified(|set| match changed(set, change) {
                Some(new) => {
                    *set = Arc::new(new);
                    true
                }
                None => false,
            });
            Next::Continue
        });
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = following => {}
        }
    }));
    receiver
}

/// The set after a change, or none where nothing changed.
fn changed(set: &PodSet, change: Change<Pod>) -> Option<PodSet> {
    match change {
        Change::Listed(pods) => {
            let pods = pods.into_iter().filter_map(entry).collect();
            Some(PodSet { synced: true, pods })
        }
        Change::Applied(pod) => {
            let (uid, pod) = entry(pod)?;
            let mut new = set.clone();
            new.pods.insert(uid, pod);
            Some(new)
        }
        Change::Deleted(pod) => {
            let uid = pod.metadata.uid?;
            set.pods.contains_key(&uid).then(|| {
                let mut new = set.clone();
                new.pods.remove(&uid);
                new
            })
        }
        Change::Failed(_) => None,
    }
}

/// A pod by uid, without the managed fields, which nobody here reads and which are as big as the rest.
fn entry(mut pod: Pod) -> Option<(String, Arc<Pod>)> {
    pod.metadata.managed_fields = None;
    let uid = pod.metadata.uid.clone()?;
    Some((uid, Arc::new(pod)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ApiError;

    fn pod(uid: &str, version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.metadata.resource_version = Some(version.to_owned());
        pod
    }

    fn versions(set: &PodSet) -> Vec<(String, String)> {
        set.pods.iter().map(|(uid, pod)| (uid.clone(), pod.metadata.resource_version.clone().unwrap())).collect()
    }

    #[test]
    fn the_set_follows_the_changes() {
        let set = PodSet::default();
        assert!(!set.synced);
        let set = changed(&set, Change::Listed(vec![pod("a", "1"), pod("b", "2"), Pod::default()])).unwrap();
        assert!(set.synced, "a complete list was seen; a pod without uid is not taken");
        assert_eq!(versions(&set), [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let set = changed(&set, Change::Applied(pod("a", "3"))).unwrap();
        let set = changed(&set, Change::Deleted(pod("b", "4"))).unwrap();
        assert_eq!(versions(&set), [("a".to_owned(), "3".to_owned())]);
        assert!(changed(&set, Change::Deleted(pod("b", "4"))).is_none(), "unknown pods change nothing");
        assert!(changed(&set, Change::Failed(ApiError::Deadline { what: "x".into(), seconds: 1 })).is_none());
        let set = changed(&set, Change::Listed(Vec::new())).unwrap();
        assert!(set.synced && set.pods.is_empty(), "a list replaces everything");
    }
}
