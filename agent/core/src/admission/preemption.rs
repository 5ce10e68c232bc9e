//! Which pods make room for a critical one: the fewest, of the lowest class of service, that free what it lacks.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::containers::{is_mirror, is_static, spec};
use crate::resources::{CRITICAL_PRIORITY, QosClass, pod_request, qos_class};

/// status.reason and event reason of a pod that made room.
pub const PREEMPTED: &str = "Preempting";
/// status.message of a pod that made room.
pub const PREEMPTED_MESSAGE: &str = "Preempted in order to admit critical pod";
/// Message of its condition `DisruptionTarget`.
pub const PREEMPTED_CONDITION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// What is missing, by resource.
pub(super) type Shortage = BTreeMap<String, i64>;

/// Whether the node can't do without the pod (kubelet `IsCriticalPod`).
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || priority(pod).is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

fn priority(pod: &Pod) -> Option<i32> {
    spec(pod)?.priority
}

fn may_end(pod: &Pod, other: &Pod) -> bool {
    (is_critical(pod) && !is_critical(other))
        || matches!((priority(pod), priority(other)), (Some(own), Some(theirs)) if own > theirs)
}

/// Requests of a pod; each pod counts as one of `pods`.
fn request(pod: &Pod, name: &str) -> i64 {
    if name == "pods" { 1 } else { pod_request(pod, name) }
}

fn without(shortage: &Shortage, pods: &[&Pod]) -> Shortage {
    let left = |name: &str, amount: i64| amount - pods.iter().map(|pod| request(pod, name)).sum::<i64>();
    shortage.iter().map(|(name, amount)| (name.clone(), left(name, *amount))).filter(|(_, left)| *left > 0).collect()
}

/// The pods to end so that `pod` has room; an error names what even all of them would not free.
pub(super) fn victims<'a>(pod: &Pod, taken: &[&'a Pod], shortage: &Shortage) -> Result<Vec<&'a Pod>, String> {
    let of_class = |class: QosClass| -> Vec<&'a Pod> {
        taken.iter().filter(|other| may_end(pod, other) && qos_class(other) == class).copied().collect()
    };
    let (best, burst) = (of_class(QosClass::BestEffort), of_class(QosClass::Burstable));
    let guaranteed = of_class(QosClass::Guaranteed);
    let all = [best.clone(), burst.clone(), guaranteed.clone()].concat();
    let lacking = without(shortage, &all);
    if !lacking.is_empty() {
        let names: Vec<String> = lacking.iter().map(|(name, amount)| format!("{name}: {amount}")).collect();
        return Err(format!("no set of running pods frees what is missing ({})", names.join(", ")));
    }
    // Of the better classes only what the others, ended to the last, would leave missing.
    let guaranteed = nearest(guaranteed, without(shortage, &[best.clone(), burst.clone()].concat()));
    let burst = nearest(burst, without(shortage, &[best.clone(), guaranteed.clone()].concat()));
    let best = nearest(best, without(shortage, &[burst.clone(), guaranteed.clone()].concat()));
    Ok([best, burst, guaranteed].concat())
}

/// Takes the pod that comes nearest to what is missing, again and again; of two that come equally near the smaller.
fn nearest(mut pods: Vec<&Pod>, mut shortage: Shortage) -> Vec<&Pod> {
    let mut chosen = Vec::new();
    while !shortage.is_empty() {
        let size = |pod: &Pod| (request(pod, "memory"), request(pod, "cpu"));
        let rank = |pod: &Pod| (distance(pod, &shortage), size(pod));
        let best = (0..pods.len()).min_by(|a, b| {
            let ((near, small), (other_near, other_small)) = (rank(pods[*a]), rank(pods[*b]));
            near.total_cmp(&other_near).then(small.cmp(&other_small))
        });
        let Some(best) = best else { break };
        let pod = pods.swap_remove(best);
        shortage = without(&shortage, &[pod]);
        chosen.push(pod);
    }
    chosen
}

/// How much of what is missing the pod would leave missing; every resource weighs the same.
fn distance(pod: &Pod, shortage: &Shortage) -> f64 {
    let part = |(name, amount): (&String, &i64)| {
        let left = (*amount - request(pod, name)).max(0);
        (left as f64 / *amount as f64).powi(2)
    };
    shortage.iter().map(part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, cpu: &str, memory: &str, guaranteed: bool) -> Pod {
        let mut resources = json!({"requests": {}});
        for (resource, value) in [("cpu", cpu), ("memory", memory)] {
            if !value.is_empty() {
                resources["requests"][resource] = value.into();
            }
        }
        if guaranteed {
            resources["limits"] = resources["requests"].clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}
        }))
        .unwrap()
    }

    #[test]
    fn the_fewest_of_the_lowest_class_make_room() {
        let pods = [
            pod("best", 0, "", "", false),
            pod("small", 0, "100m", "100Mi", false),
            pod("medium", 0, "500m", "500Mi", false),
            pod("large", 0, "2", "2Gi", false),
            pod("sure", 0, "1", "1Gi", true),
            pod("critical", CRITICAL_PRIORITY, "4", "4Gi", true),
        ];
        let taken: Vec<&Pod> = pods.iter().collect();
        let asks = pod("new", CRITICAL_PRIORITY, "1", "1Gi", true);
        const MEBI: i64 = 1 << 20;
        for (shortage, want) in [
            (vec![("cpu", 50)], Ok("small")),
            (vec![("cpu", 400)], Ok("medium")),
            (vec![("memory", 1000 * MEBI)], Ok("large")),
            (vec![("cpu", 50), ("memory", 400 * MEBI)], Ok("medium")),
            (vec![("cpu", 2300)], Ok("large medium")),
            (vec![("cpu", 3000)], Ok("large sure")),
            (vec![("pods", 1)], Ok("best")),
            (vec![("cpu", 4000)], Err(())),
            (vec![("example.com/gpu", 1)], Err(())),
        ] {
            let shortage: Shortage = shortage.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect();
            let found = victims(&asks, &taken, &shortage).map_err(|_| ()).map(|pods| {
                pods.iter().map(|pod| crate::containers::name(pod).to_owned()).collect::<Vec<_>>().join(" ")
            });
            assert_eq!(found.as_deref().map_err(|_| ()), want, "{shortage:?}");
        }
    }

    #[test]
    fn who_may_end_whom() {
        let (low, high) = (pod("l", 0, "", "", false), pod("h", 10, "", "", false));
        let critical = pod("c", CRITICAL_PRIORITY, "", "", false);
        let mut fixed = pod("s", 0, "", "", false);
        fixed.metadata.annotations = Some([(crate::labels::CONFIG_SOURCE.to_owned(), "file".to_owned())].into());
        for (pod, other, want) in [
            (&critical, &low, true),
            (&critical, &fixed, true),
            (&low, &critical, false),
            (&high, &low, true),
            (&low, &high, false),
            (&fixed, &low, true),
            (&fixed, &critical, false),
        ] {
            assert_eq!(may_end(pod, other), want, "{:?} {:?}", pod.metadata.name, other.metadata.name);
        }
    }
}
