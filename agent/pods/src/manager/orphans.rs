//! What nobody wants: pods in the runtime or on disk that no source has. Each gets a worker that ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use orlop_agent_core::metrics::names;
use tokio::time::Instant;

use crate::manager::{DISK_SCAN, Roster};
use crate::worker::Desired;

impl Roster {
    /// Finds orphans; the disk is looked at once in a while. Returns when to look at it again.
    pub(super) fn find_orphans(&mut self, wanted: &BTreeMap<&str, &Arc<Pod>>) -> Instant {
        let mut orphans: BTreeMap<String, (String, String)> = BTreeMap::new();
        for observed in self.shared.observed.all() {
            orphans.insert(observed.uid.clone(), (observed.namespace.clone(), observed.name.clone()));
        }
        let now = Instant::now();
        let next = self.next_scan.filter(|at| *at > now).unwrap_or_else(|| {
            let ports = &self.shared.ports;
            let left = ports
                .volumes
                .pods_on_disk()
                .into_iter()
                .chain(ports.cgroups.pods_on_disk())
                .chain(self.shared.directories.pods_on_disk());
            for uid in left {
                orphans.entry(uid).or_default();
            }
            now + DISK_SCAN
        });
        self.next_scan = Some(next);
        for (uid, (namespace, name)) in orphans {
            // A pod whose worker is done may leave something behind that came late; it is ended like an orphan.
            if self.members.contains_key(&uid) || (wanted.contains_key(uid.as_str()) && !self.done.contains(&uid)) {
                continue;
            }
            self.shared.ports.metrics.count(&names::ORPHANED_PODS, &[]);
            tracing::info!(uid, namespace, name, "ending what is left of a pod that is not wanted");
            let metadata =
                ObjectMeta { uid: Some(uid), namespace: Some(namespace), name: Some(name), ..ObjectMeta::default() };
            let pod = Arc::new(Pod { metadata, ..Pod::default() });
            let desired = Desired {
                pod,
                mirror_uid: None,
                gone: true,
                orphan: true,
                verdict: None,
                verdict_grace_seconds: None,
                refresh: 0,
            };
            self.hire(desired, now);
        }
        next
    }
}
