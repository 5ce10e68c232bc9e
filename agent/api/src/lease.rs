//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every quarter of its life.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::client::{ApiClients, ApiError, within};
use crate::node_source::NodeRecord;
use crate::retry::{RetryDelay, spread};

/// Namespace of all node leases (k8s.io/api/core/v1 NamespaceNodeLease).
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Renewal happens after this share of the life, lengthened by up to [`RENEW_JITTER`] (kubelet).
const RENEW_SHARE: f64 = 0.25;
const RENEW_JITTER: f64 = 0.04;
/// Tries of one renewal before the lease is read again.
const RENEW_TRIES: u32 = 5;

/// Renews the lease of `node_name` until cancelled. A failure never ends it; the life is `nodeLeaseDurationSeconds`.
pub async fn renew_lease(
    clients: ApiClients,
    node_name: String,
    duration_seconds: i32,
    node: watch::Receiver<NodeRecord>,
    cancel: CancellationToken,
) {
    let interval = Duration::from_secs_f64(f64::from(duration_seconds) * RENEW_SHARE);
    let api: Api<Lease> = Api::namespaced(clients.heartbeat.clone(), LEASE_NAMESPACE);
    let mut holder = LeaseHolder { api, node_name, duration_seconds, node, deadline: interval, latest: None };
    let mut delay = RetryDelay::new(Duration::from_millis(200), Duration::from_secs(7).min(interval));
    let mut failing = false;
    loop {
        let pause = match holder.renew().await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("the node lease is renewed again");
                }
                delay.reset();
                spread(interval, RENEW_JITTER)
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "the node lease can't be renewed");
                }
                delay.next_delay()
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct LeaseHolder {
    api: Api<Lease>,
    node_name: String,
    duration_seconds: i32,
    node: watch::Receiver<NodeRecord>,
    /// How long one request may take: the interval, since a later answer is of no use.
    deadline: Duration,
    latest: Option<Lease>,
}

impl LeaseHolder {
    async fn renew(&mut self) -> Result<(), ApiError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.renew_once().await {
                Err(error) if tries < RENEW_TRIES && (error.is_conflict() || error.is_not_found()) => {
                    debug!(%error, "the node lease changed under us; reading it again");
                    self.latest = None;
                }
                result => return result,
            }
        }
    }

    async fn renew_once(&mut self) -> Result<(), ApiError> {
        let params = PostParams::default();
        if self.latest.is_none() {
            self.latest = within("get the node lease", self.deadline, self.api.get_opt(&self.node_name)).await?;
        }
        let uid = self.node.borrow().uid();
        let lease = renewed(self.latest.clone(), &self.node_name, self.duration_seconds, uid, Timestamp::now());
        let written = if self.latest.is_some() {
            within("renew the node lease", self.deadline, self.api.replace(&self.node_name, &params, &lease)).await?
        } else {
            within("create the node lease", self.deadline, self.api.create(&params, &lease)).await?
        };
        self.latest = Some(written);
        Ok(())
    }
}

/// The lease to be written, from the one that is there.
fn renewed(
    old: Option<Lease>,
    node_name: &str,
    duration_seconds: i32,
    node_uid: Option<String>,
    now: Timestamp,
) -> Lease {
    let mut lease = old.unwrap_or_default();
    lease.metadata.name = Some(node_name.to_owned());
    lease.metadata.namespace = Some(LEASE_NAMESPACE.to_owned());
    let owned = lease.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    if let (Some(uid), false) = (node_uid, owned) {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node_name.to_owned(),
            uid,
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node_name.to_owned());
    spec.lease_duration_seconds = Some(duration_seconds);
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_keeps_its_owner_and_gets_one_as_soon_as_the_node_is_known() {
        let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
        let new = renewed(None, "n", 40, None, now);
        assert!(new.metadata.owner_references.is_none());
        let spec = new.spec.clone().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("n"), Some(40)));
        let owned = renewed(Some(new), "n", 40, Some("u1".into()), now);
        assert_eq!(owned.metadata.owner_references.as_ref().unwrap()[0].uid, "u1");
        let again = renewed(Some(owned), "n", 40, Some("u2".into()), now);
        assert_eq!(again.metadata.owner_references.unwrap()[0].uid, "u1", "an owner is never replaced");
    }
}
