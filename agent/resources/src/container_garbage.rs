//! Which dead containers and sandboxes to remove (kubelet container garbage collection).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

/// When dead containers are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerPolicy {
    /// Containers younger than this stay.
    pub age_min: SignedDuration,
    /// Dead instances kept of each container of a pod; none keeps all.
    pub per_container_max: Option<usize>,
    /// Dead containers kept in all; none keeps all.
    pub total_max: Option<usize>,
}

/// The kubelet's defaults: one instance each (for `logs --previous`), no other bound.
impl Default for ContainerPolicy {
    fn default() -> Self {
        Self { age_min: SignedDuration::ZERO, per_container_max: Some(1), total_max: None }
    }
}

/// A container of ours that is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadContainer {
    /// CRI id.
    pub id: String,
    /// Its pod.
    pub pod_uid: String,
    /// Name in the pod.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A sandbox of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxFact {
    /// CRI id.
    pub id: String,
    /// Its pod.
    pub pod_uid: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether any container, dead or alive, is in it.
    pub has_containers: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Containers to remove. `gone` holds the pods whose remains may all go: deleted ones, and evicted ones when space is
/// needed. Give it empty until all sources of pods have been heard.
pub fn plan_containers(
    dead: &[DeadContainer],
    gone: &BTreeSet<String>,
    policy: &ContainerPolicy,
    now: Timestamp,
) -> Vec<String> {
    let mut remove = Vec::new();
    let mut units: BTreeMap<(&str, &str), Vec<&DeadContainer>> = BTreeMap::new();
    for container in dead.iter().filter(|container| now.duration_since(container.created_at) >= policy.age_min) {
        if gone.contains(&container.pod_uid) {
            remove.push(container.id.clone());
        } else {
            units.entry((&container.pod_uid, &container.name)).or_default().push(container);
        }
    }
    for unit in units.values_mut() {
        unit.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    }
    let mut trim = |units: &mut BTreeMap<_, Vec<&DeadContainer>>, keep: usize| {
        for unit in units.values_mut() {
            remove.extend(unit.drain(keep.min(unit.len())..).map(|container| container.id.clone()));
        }
    };
    if let Some(keep) = policy.per_container_max {
        trim(&mut units, keep);
    }
    let total = |units: &BTreeMap<_, Vec<&DeadContainer>>| units.values().map(Vec::len).sum::<usize>();
    if let Some(total_max) = policy.total_max
        && total(&units) > total_max
    {
        // An even share each, then the oldest whatever they are.
        let share = (total_max / units.len().max(1)).max(1);
        trim(&mut units, share);
        let mut left: Vec<&DeadContainer> = units.into_values().flatten().collect();
        left.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        remove.extend(left.drain(total_max.min(left.len())..).map(|container| container.id.clone()));
    }
    remove
}

/// Sandboxes to remove: dead and empty ones, but the newest of a pod that is still there.
pub fn plan_sandboxes(sandboxes: &[SandboxFact], gone: &BTreeSet<String>) -> Vec<String> {
    let mut newest: BTreeMap<&str, &SandboxFact> = BTreeMap::new();
    for sandbox in sandboxes {
        let known = newest.entry(&sandbox.pod_uid).or_insert(sandbox);
        if sandbox.created_at > known.created_at {
            *known = sandbox;
        }
    }
    let keeps = |sandbox: &SandboxFact| {
        !gone.contains(&sandbox.pod_uid)
            && newest.get(sandbox.pod_uid.as_str()).is_some_and(|newest| newest.id == sandbox.id)
    };
    sandboxes
        .iter()
        .filter(|sandbox| !sandbox.ready && !sandbox.has_containers && !keeps(sandbox))
        .map(|sandbox| sandbox.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// `pod/name/seconds`.
    fn dead(texts: &[&str]) -> Vec<DeadContainer> {
        let one = |text: &&str| {
            let parts: Vec<&str> = text.split('/').collect();
            DeadContainer {
                id: (*text).into(),
                pod_uid: parts[0].into(),
                name: parts[1].into(),
                created_at: at(parts[2].parse().unwrap()),
            }
        };
        texts.iter().map(one).collect()
    }

    #[test]
    fn instances_are_kept_by_policy() {
        let all = dead(&["p/a/1", "p/a/2", "p/a/3", "p/b/4", "q/a/5", "q/a/6"]);
        let policy = |per_container_max, total_max| ContainerPolicy {
            per_container_max,
            total_max,
            ..ContainerPolicy::default()
        };
        let table: [(&str, &[&str], ContainerPolicy, &[&str]); 7] = [
            ("one each", &[], ContainerPolicy::default(), &["p/a/2", "p/a/1", "q/a/5"]),
            ("none", &[], policy(Some(0), None), &["p/a/3", "p/a/2", "p/a/1", "p/b/4", "q/a/6", "q/a/5"]),
            ("all", &[], policy(None, None), &[]),
            ("a gone pod", &["q"], ContainerPolicy::default(), &["q/a/5", "q/a/6", "p/a/2", "p/a/1"]),
            ("a total", &[], policy(None, Some(4)), &["p/a/2", "p/a/1", "q/a/5"]),
            ("a small total", &[], policy(None, Some(1)), &["p/a/2", "p/a/1", "q/a/5", "p/b/4", "p/a/3"]),
            (
                "young ones",
                &[],
                ContainerPolicy { age_min: SignedDuration::from_secs(8), ..policy(Some(0), None) },
                &["p/a/2", "p/a/1"],
            ),
        ];
        for (name, gone, policy, expected) in table {
            let gone = gone.iter().map(|uid| (*uid).to_owned()).collect();
            assert_eq!(plan_containers(&all, &gone, &policy, at(10)), expected, "{name}");
        }
    }

    #[test]
    fn the_newest_sandbox_of_a_living_pod_stays() {
        let sandbox = |id: &str, pod: &str, ready, has_containers, seconds| SandboxFact {
            id: id.into(),
            pod_uid: pod.into(),
            ready,
            has_containers,
            created_at: at(seconds),
        };
        let all = [
            sandbox("old", "p", false, false, 1),
            sandbox("busy", "p", false, true, 2),
            sandbox("new", "p", false, false, 3),
            sandbox("gone", "g", false, false, 1),
            sandbox("gone-ready", "g", true, false, 2),
        ];
        assert_eq!(plan_sandboxes(&all, &["g".to_owned()].into()), ["old", "gone"]);
        assert_eq!(
            plan_sandboxes(&all, &BTreeSet::new()),
            ["old", "gone"],
            "an older one goes even while the pod lives"
        );
    }
}
