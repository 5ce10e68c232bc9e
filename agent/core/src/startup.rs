//! How long a pod took to start, and how much of that the node is to answer for (the "pod startup latency SLI").

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::containers::{init_containers, is_sidecar, spec};
use crate::facts::ObservedPod;
use crate::status::is_terminal;

/// The start of a pod that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Containers that wait for images.
    waiting: BTreeSet<String>,
    /// Since when it has waited for one or the other.
    waits_since: Option<Timestamp>,
    /// How long it waited for images before that.
    waited: SignedDuration,
}

/// How long a start took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartTimes {
    /// From the pod's making until the API showed that all its containers run.
    pub total: SignedDuration,
    /// The same without the time of pulls and init containers; none for a pod with volumes whose contents last, which
    /// may wait for storage.
    pub own: Option<SignedDuration>,
}

impl Startup {
    /// The start of a pod that is seen for the first time; none if it has been started already, or was held up because no
    /// node had room.
    pub fn of(pod: &Pod) -> Option<Startup> {
        let status = pod.status.as_ref();
        let begun = status.is_some_and(|status| status.start_time.is_some() || is_terminal(status.phase.as_deref()));
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let held_up =
            conditions.iter().any(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        (!begun && !held_up).then(Startup::default)
    }

    /// A container waits for an image to be pulled. A pull that fails and is tried again is one wait, as for the kubelet.
    pub fn awaits_image(&mut self, container: &str, now: Timestamp) {
        if !self.waiting.contains(container) {
            self.waiting.insert(container.to_owned());
        }
        self.waits_since.get_or_insert(now);
    }

    /// The image that a container waited for is there.
    pub fn has_image(&mut self, container: &str, now: Timestamp) {
        if self.waiting.remove(container)
            && self.waiting.is_empty()
            && let Some(since) = self.waits_since.take()
        {
            self.waited += now.duration_since(since);
        }
    }

    /// How long the start took, if all containers run by the status that the API shows; `observed` tells how long init
    /// containers ran.
    pub fn times(&self, pod: &Pod, observed: &ObservedPod, now: Timestamp) -> Option<StartTimes> {
        let statuses = pod.status.as_ref()?.container_statuses.as_deref().filter(|statuses| !statuses.is_empty())?;
        let runs = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            state.and_then(|state| state.running.as_ref()).is_some_and(|running| running.started_at.is_some())
        };
        if !statuses.iter().all(|status| runs(status.state.as_ref())) {
            return None;
        }
        let total = now.duration_since(pod.metadata.creation_timestamp.as_ref()?.0);
        let own = (total - self.waited - time_of_init_containers(pod, observed)).max(SignedDuration::ZERO);
        let lasting = spec(pod).is_some_and(|spec| spec.volumes.iter().flatten().any(lasts));
        Some(StartTimes { total, own: (!lasting).then_some(own) })
    }
}

/// How long the init containers ran that run to their end, by what the runtime still has of them.
fn time_of_init_containers(pod: &Pod, observed: &ObservedPod) -> SignedDuration {
    let init: BTreeSet<String> = init_containers(pod)
        .filter(|found| !is_sidecar(&found.container))
        .map(|found| found.name().to_owned())
        .collect();
    let runs = observed.containers.iter().filter(|container| init.contains(&container.name));
    runs.filter_map(|container| Some(container.finished_at?.duration_since(container.started_at?)))
        .fold(SignedDuration::ZERO, |sum, took| sum + took.max(SignedDuration::ZERO))
}

/// Whether a volume is of a kind that the definition of the SLI counts as state.
fn lasts(volume: &Volume) -> bool {
    volume.secret.is_none()
        && volume.config_map.is_none()
        && volume.downward_api.is_none()
        && volume.empty_dir.is_none()
        && volume.projected.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::facts::{ContainerFact, ObservedContainer};
    use crate::runtime::{ContainerSpec, SandboxSpec};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(volumes: serde_json::Value, status: serde_json::Value) -> Pod {
        let containers = json!([{"name": "a"}, {"name": "b"}]);
        let init = json!([{"name": "i"}, {"name": "side", "restartPolicy": "Always"}]);
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": at(0).to_string()},
            "spec": {"containers": containers, "initContainers": init, "volumes": volumes},
            "status": status,
        }))
        .unwrap()
    }

    fn ran(name: &str, from: i64, to: Option<i64>) -> ObservedContainer {
        let (spec, sandbox) = (ContainerSpec { name: name.into(), ..Default::default() }, SandboxSpec::default());
        let made = ObservedContainer::made(name, "s", &spec, &sandbox, at(from));
        ObservedContainer { fact: ContainerFact::Exited, started_at: Some(at(from)), finished_at: to.map(at), ..made }
    }

    #[test]
    fn only_starts_that_were_not_begun_or_held_up_are_followed() {
        for (status, followed) in [
            (json!({}), true),
            (json!({"phase": "Pending"}), true),
            (json!({"phase": "Pending", "startTime": at(1).to_string()}), false),
            (json!({"phase": "Failed"}), false),
            (json!({"conditions": [{"type": "PodScheduled", "status": "True"}]}), true),
            (json!({"conditions": [{"type": "PodScheduled", "status": "False"}]}), false),
        ] {
            assert_eq!(Startup::of(&pod(json!([]), status.clone())).is_some(), followed, "{status}");
        }
    }

    #[test]
    fn pulls_and_init_containers_are_not_the_nodes_doing() {
        let runs = |second: i64| json!({"running": {"startedAt": at(second).to_string()}});
        let both = json!([
            {"name": "a", "state": runs(8), "image": "", "imageID": "", "ready": true, "restartCount": 0},
            {"name": "b", "state": runs(9), "image": "", "imageID": "", "ready": true, "restartCount": 0},
        ]);
        let mut one = both.clone();
        one[1]["state"] = json!({"waiting": {"reason": "ContainerCreating"}});
        let times = |total: i64, own: Option<i64>| {
            Some(StartTimes { total: SignedDuration::from_secs(total), own: own.map(SignedDuration::from_secs) })
        };
        // What happens to images: (second, container, it is there).
        type Images<'a> = &'a [(i64, &'a str, bool)];
        for (what, images, init, volumes, statuses, want) in [
            ("nothing to wait for", &[] as Images<'_>, None, json!([]), &both, times(10, Some(10))),
            ("one waits", &[], None, json!([]), &one, None),
            ("no statuses yet", &[], None, json!([]), &json!([]), None),
            ("a pull", &[(1, "x", false), (3, "x", true)], None, json!([]), &both, times(10, Some(8))),
            ("one that was there", &[(3, "x", true)], None, json!([]), &both, times(10, Some(10))),
            (
                "pulls at the same time",
                &[(1, "x", false), (2, "y", false), (3, "x", true), (5, "y", true), (6, "z", false), (7, "z", true)],
                None,
                json!([]),
                &both,
                times(10, Some(5)),
            ),
            (
                "a pull that failed first",
                &[(1, "x", false), (4, "x", false), (6, "x", true)],
                None,
                json!([]),
                &both,
                times(10, Some(5)),
            ),
            ("an init container", &[], Some(4), json!([]), &both, times(10, Some(6))),
            (
                "more than all at once",
                &[(0, "x", false), (9, "x", true)],
                Some(8),
                json!([]),
                &both,
                times(10, Some(0)),
            ),
            ("contents of the API", &[], None, json!([{"name": "v", "secret": {}}]), &both, times(10, Some(10))),
            (
                "a claim",
                &[],
                None,
                json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]),
                &both,
                times(10, None),
            ),
        ] {
            let mut startup = Startup::default();
            for (second, name, there) in images {
                match there {
                    true => startup.has_image(name, at(*second)),
                    false => startup.awaits_image(name, at(*second)),
                }
            }
            let mut observed = ObservedPod::default();
            observed.containers.push(ran("side", 0, Some(9)));
            observed.containers.push(ran("a", 0, Some(3)));
            observed.containers.push(ran("i", 1, init.map(|took| 1 + took)));
            let shown = pod(volumes, json!({"containerStatuses": statuses}));
            assert_eq!(startup.times(&shown, &observed, at(10)), want, "{what}");
        }
    }
}
