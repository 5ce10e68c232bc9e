//! The table of pods: how many containers are ready, what the pod is doing, how often something was started again.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::column::{AGE, Layout, NAME, age, column, flag, name, text_or};
use super::duration::human;
use crate::object;
use crate::registry::Resource;

/// Pods.
pub(super) static LAYOUT: Layout = Layout {
    columns: &[
        NAME,
        column("Ready", "Containers that are ready, of all that run as long as the pod."),
        column("Status", "What the pod does, or what keeps it from it."),
        column("Restarts", "How often its containers were started again, and how long ago the last one ended."),
        AGE,
        column("IP", "First address of the pod.").wide(),
        column("Node", "Node that the pod is bound to.").wide(),
        column("Nominated Node", "Node on which room is being made for the pod.").wide(),
        column("Readiness Gates", "Conditions of its readiness gates that are true, of all.").wide(),
    ],
    cells,
};

/// Pod templates.
pub(super) static TEMPLATES: Layout = Layout {
    columns: &[
        NAME,
        column("Containers", "Names of the containers of its pods."),
        column("Images", "Images of the containers of its pods."),
        column("Pod Labels", "Labels of its pods."),
    ],
    cells: |template, _| {
        let all = |field: &str| {
            let of = |container: &Value| object::text(container, field).to_owned();
            object::items(template, "/template/spec/containers").iter().map(of).collect::<Vec<_>>().join(",")
        };
        let labels = template.pointer("/template/metadata/labels").and_then(Value::as_object);
        let labels: Vec<String> = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        let labels = if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") };
        vec![name(template), json!(all("/name")), json!(all("/image")), json!(labels)]
    },
};

/// Marks of the row of a pod that has ended.
pub(super) fn row_conditions(resource: &Resource, pod: &Value) -> Option<Value> {
    let message = match (resource.plural, object::text(pod, "/status/phase")) {
        ("pods", "Succeeded") => "The pod has completed successfully.",
        ("pods", "Failed") => "The pod failed.",
        _ => return None,
    };
    Some(
        json!([{"type": "Completed", "status": "True", "reason": object::text(pod, "/status/phase"), "message": message}]),
    )
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.restarts.last {
        Some(last) if summary.restarts.count != 0 => {
            format!("{} ({} ago)", summary.restarts.count, human(now.duration_since(last).as_secs()))
        }
        _ => summary.restarts.count.to_string(),
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.status),
        json!(restarts),
        age(pod, now),
        json!(text_or(pod, "/status/podIPs/0/ip", "<none>")),
        json!(text_or(pod, "/spec/nodeName", "<none>")),
        json!(text_or(pod, "/status/nominatedNodeName", "<none>")),
        json!(gates(pod)),
    ]
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    object::items(pod, "/status/conditions").iter().find(|condition| object::text(condition, "/type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| object::text(condition, "/status") == "True")
}

fn gates(pod: &Value) -> String {
    let gates = object::items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let good = gates.iter().filter(|gate| is_true(pod, object::text(gate, "/conditionType"))).count();
    format!("{good}/{}", gates.len())
}

/// How often, and when last.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += object::number(container, "/restartCount").unwrap_or(0);
        self.last = self.last.max(object::time(container, "/lastState/terminated/finishedAt"));
    }
}

struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: Restarts,
}

/// What the init containers say.
struct Beginning {
    /// Sidecars that are ready.
    ready: usize,
    /// What holds the pod back, when something does.
    held: Option<String>,
    all: Restarts,
    sidecars: Restarts,
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    let mut containers = object::items(pod, "/spec/initContainers").iter();
    containers.any(|container| {
        object::text(container, "/name") == name && object::text(container, "/restartPolicy") == "Always"
    })
}

fn summarize(pod: &Value) -> Summary {
    let init = object::items(pod, "/spec/initContainers");
    let sidecars = init.iter().filter(|container| object::text(container, "/restartPolicy") == "Always").count();
    let total = object::items(pod, "/spec/containers").len() + sidecars;
    let mut status = text_or(pod, "/status/reason", object::text(pod, "/status/phase"));
    if condition(pod, "PodScheduled").is_some_and(|condition| object::text(condition, "/reason") == "SchedulingGated") {
        status = "SchedulingGated".into();
    }
    let beginning = summarize_init(pod);
    let (mut ready, mut restarts) = (beginning.ready, beginning.all);
    let held = beginning.held.is_some();
    status = beginning.held.unwrap_or(status);
    if !held || is_true(pod, "Initialized") {
        restarts = beginning.sidecars;
        ready += summarize_app(pod, &mut status, &mut restarts);
    }
    if object::is_terminating(pod) {
        let ended = matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed");
        if object::text(pod, "/status/reason") == "NodeLost" {
            status = "Unknown".into();
        } else if !ended {
            status = "Terminating".into();
        }
    }
    Summary { ready, total, status, restarts }
}

fn summarize_init(pod: &Value) -> Beginning {
    let mut beginning = Beginning { ready: 0, held: None, all: Restarts::default(), sidecars: Restarts::default() };
    let count = object::items(pod, "/spec/initContainers").len();
    for (index, container) in object::items(pod, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar(pod, object::text(container, "/name"));
        beginning.all.add(container);
        if sidecar {
            beginning.sidecars.add(container);
        }
        let ended = container.pointer("/state/terminated");
        if ended.is_some_and(|ended| object::number(ended, "/exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && flag(container, "/started", false) {
            beginning.ready += usize::from(flag(container, "/ready", false));
            continue;
        }
        let waiting = object::text(container, "/state/waiting/reason");
        beginning.held = Some(match ended {
            Some(ended) => format!("Init:{}", end_reason(ended)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{count}"),
        });
        break;
    }
    beginning
}

fn end_reason(ended: &Value) -> String {
    let (reason, signal) = (object::text(ended, "/reason"), object::number(ended, "/signal").unwrap_or(0));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", object::number(ended, "/exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

/// Reads the app containers, the last one first, so that the first one's reason is shown; returns how many are ready.
fn summarize_app(pod: &Value, status: &mut String, restarts: &mut Restarts) -> usize {
    let (mut ready, mut failure) = (0, None);
    for container in object::items(pod, "/status/containerStatuses").iter().rev() {
        restarts.add(container);
        let waiting = object::text(container, "/state/waiting/reason");
        if !waiting.is_empty() {
            *status = waiting.into();
        } else if let Some(ended) = container.pointer("/state/terminated") {
            *status = end_reason(ended);
            if object::number(ended, "/exitCode").unwrap_or(0) != 0 {
                failure = Some(status.clone());
            }
        } else if flag(container, "/ready", false) && container.pointer("/state/running").is_some() {
            ready += 1;
        }
    }
    // Some have ended well, but that is not all of the pod.
    if status == "Completed" {
        match failure {
            _ if ready > 0 && is_true(pod, "Ready") => *status = "Running".into(),
            Some(failure) => *status = failure,
            None if ready > 0 => *status = "NotReady".into(),
            None => {}
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: Value, spec: Value) -> (String, String, String) {
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let cells = cells(&json!({"metadata": {"name": "p"}, "spec": spec, "status": status}), now);
        let text = |index: usize| cells[index].as_str().unwrap().to_string();
        (text(1), text(2), text(3))
    }

    fn shown(ready: &str, status: &str, restarts: &str) -> (String, String, String) {
        (ready.into(), status.into(), restarts.into())
    }

    #[test]
    fn app_containers() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(row(json!({"phase": "Pending"}), two.clone()), shown("0/2", "Pending", "0"));
        let back_off = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}},
            {"name": "b", "ready": true, "restartCount": 0, "state": {"running": {}}},
        ]});
        assert_eq!(row(back_off, two.clone()), shown("1/2", "CrashLoopBackOff", "3 (5m ago)"));
        let half = |ready: &str, code: i64| {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "b", "ready": code == 0, "state": if code == 0 { json!({"running": {}}) } else { json!({"terminated": {"exitCode": code, "reason": "Error"}}) }},
            ]})
        };
        assert_eq!(row(half("True", 0), two.clone()), shown("1/2", "Running", "0"));
        assert_eq!(row(half("False", 0), two.clone()), shown("1/2", "NotReady", "0"));
        assert_eq!(row(half("False", 1), two.clone()), shown("0/2", "Error", "0"));
        let evicted = json!({"phase": "Failed", "reason": "Evicted"});
        assert_eq!(row(evicted, two), shown("0/2", "Evicted", "0"));
    }

    #[test]
    fn init_containers() {
        let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let init = |i: Value, s: Value, j: Value| {
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 1, "state": i}, {"name": "s", "restartCount": 2, "started": true, "ready": true, "state": s}, {"name": "j", "state": j},
            ], "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]})
        };
        let (done, waiting) =
            (json!({"terminated": {"exitCode": 0}}), json!({"waiting": {"reason": "PodInitializing"}}));
        let running = json!({"running": {}});
        assert_eq!(
            row(init(running.clone(), waiting.clone(), waiting.clone()), spec.clone()),
            shown("0/2", "Init:0/3", "1")
        );
        assert_eq!(
            row(init(done.clone(), running.clone(), waiting.clone()), spec.clone()),
            shown("1/2", "Init:2/3", "3")
        );
        let failed = json!({"terminated": {"exitCode": 3}});
        assert_eq!(
            row(init(done.clone(), running.clone(), failed), spec.clone()),
            shown("1/2", "Init:ExitCode:3", "3")
        );
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(
            row(init(back_off, waiting.clone(), waiting), spec.clone()),
            shown("0/2", "Init:CrashLoopBackOff", "1")
        );
        assert_eq!(row(init(done.clone(), running, done), spec), shown("1/2", "PodInitializing", "2"));
    }

    #[test]
    fn deleted_pods() {
        let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {"phase": "Running"}});
        assert_eq!(summarize(&pod).status, "Terminating");
        let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {"phase": "Succeeded"}});
        assert_eq!(summarize(&pod).status, "Succeeded");
    }
}
