//! Shapes of pods that many cases share, and looks at what came of them.

use std::time::Instant;

use orlop_tests::case::Case;
use serde_json::{Value, json};

/// Where in a pod the container that a case is about stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Among the containers.
    App,
    /// Among the init containers, and it is restarted.
    Sidecar,
}

impl Kind {
    /// Makes a pod whose container `c` is this one; `spec` holds other fields of the pod.
    pub fn make_pod(self, case: &Case<'_>, name: &str, mut container: Value, mut spec: Value) {
        container["name"] = "c".into();
        match self {
            Kind::App => spec["containers"] = json!([container]),
            Kind::Sidecar => {
                container["restartPolicy"] = "Always".into();
                spec["initContainers"] = json!([container]);
                let polite = "trap 'exit 0' TERM; while :; do sleep 0.2; done";
                spec["containers"] = json!([{"name": "main", "command": ["sh", "-c", polite]}]);
            }
        }
        case.make_pod(name, spec);
    }
}

/// Makes a case of each body for containers and one for sidecars, in modules of these names.
#[macro_export]
macro_rules! both {
    ($($case:ident),* $(,)?) => {
        /// Of containers.
        pub mod app {
            $(pub fn $case(case: &orlop_tests::case::Case<'_>) {
                super::$case(case, $crate::shape::Kind::App);
            })*
        }
        /// Of sidecars.
        pub mod sidecar {
            $(pub fn $case(case: &orlop_tests::case::Case<'_>) {
                super::$case(case, $crate::shape::Kind::Sidecar);
            })*
        }
    };
}

/// How often events with this reason and these words were seen of an object.
pub fn event_count(case: &Case<'_>, object: &str, reason: &str, words: &str) -> u64 {
    let events = case.cluster.api.get(&case.path("events", ""));
    let fits = |event: &&Value| {
        event["involvedObject"]["name"] == object
            && event["reason"] == reason
            && event["message"].as_str().is_some_and(|message| message.contains(words))
    };
    let count = |event: &Value| event["count"].as_u64().or_else(|| event["series"]["count"].as_u64()).unwrap_or(1);
    events["items"].as_array().into_iter().flatten().filter(fits).map(count).sum()
}

/// Seconds since then.
pub fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

/// A time of the API as seconds since 1970.
pub fn second_of(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("{time} is no time"));
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().expect("a number in a time");
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days of the civil calendar, counted in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    days * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19)
}

/// What a watch of a kind in the case's namespace tells that began at this version, up to now.
pub fn watched(case: &Case<'_>, kind: &str, from: &str) -> Vec<Value> {
    let path = format!("{}?watch=1&resourceVersion={from}&timeoutSeconds=1", case.path(kind, ""));
    let (code, told) = case.cluster.api.send("GET", &path, None).expect("watch");
    assert_eq!(code, 200, "watch {kind}: {told}");
    match told {
        Value::String(lines) => lines.lines().map(|line| serde_json::from_str(line).expect("an event")).collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}
