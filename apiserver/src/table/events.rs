//! The table of events, of either version.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::column::{Layout, column, name, since, text_or};
use crate::object;

/// Events.
pub(super) static LAYOUT: Layout = Layout {
    columns: &[
        column("Last Seen", "Time since it happened last."),
        column("Type", "Normal or Warning."),
        column("Reason", "Why it happened, in one word for machines."),
        column("Object", "What it happened to."),
        column("Subobject", "Which part of the object it happened to.").wide(),
        column("Source", "Who tells it, and from where.").wide(),
        column("Message", "What happened, for people."),
        column("First Seen", "Time since it happened first.").wide(),
        column("Count", "How often it happened.").wide(),
        column("Name", "Name of the event itself.").naming().wide(),
    ],
    cells,
};

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let mut first = since(event, "/firstTimestamp", now);
    if object::time(event, "/firstTimestamp").is_none() {
        first = since(event, "/eventTime", now);
    }
    let mut last = since(event, "/lastTimestamp", now);
    if object::time(event, "/lastTimestamp").is_none() {
        last = first.clone();
    }
    let mut count = object::number(event, "/count").filter(|count| *count != 0).unwrap_or(1);
    if event.get("series").is_some_and(Value::is_object) {
        last = since(event, "/series/lastObservedTime", now);
        count = object::number(event, "/series/count").unwrap_or(0);
    }
    vec![
        json!(last),
        json!(object::text(event, "/type")),
        json!(object::text(event, "/reason")),
        json!(target(event)),
        json!(object::text(event, "/involvedObject/fieldPath")),
        json!(source(event)),
        json!(object::text(event, "/message").trim()),
        json!(first),
        json!(count),
        name(event),
    ]
}

fn target(event: &Value) -> String {
    let kind = object::text(event, "/involvedObject/kind").to_lowercase();
    match object::text(event, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let component = text_or(event, "/source/component", object::text(event, "/reportingComponent"));
    match text_or(event, "/source/host", object::text(event, "/reportingInstance")) {
        host if host.is_empty() => component,
        host => format!("{component}, {host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_events() {
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let old = json!({
            "metadata": {"name": "e"}, "type": "Warning", "reason": "BackOff", "message": "again\n", "count": 4,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:50Z",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"}, "source": {"component": "kubelet", "host": "n"},
        });
        let expected =
            json!(["10s", "Warning", "BackOff", "pod/p", "spec.containers{a}", "kubelet, n", "again", "5m", 4, "e"]);
        assert_eq!(json!(cells(&old, now)), expected);
        let new = json!({
            "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.5Z", "involvedObject": {"kind": "Node"},
            "reportingComponent": "c", "series": {"count": 7, "lastObservedTime": "2026-01-01T00:04:00Z"},
        });
        assert_eq!(json!(cells(&new, now)), json!(["60s", "", "", "node", "", "c", "", "4m59s", 7, "e"]));
    }
}
