//! Admission: each reason to refuse a pod, alone and against every other one, so that it shows which of two is told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::{compare, render};
use crate::admission::{NodeOffer, admit};
use crate::containers::name;
use crate::resources::CRITICAL_PRIORITY;

/// What can be wrong with a pod. The first is nothing.
const FAULTS: [&str; 16] = [
    "-",
    "sysctl",
    "os label",
    "os field",
    "strict groups",
    "pods",
    "cpu",
    "memory",
    "disk",
    "extended resource",
    "unknown resource",
    "affinity",
    "node name",
    "host port",
    "taint",
    "apparmor",
];

fn node(fault: [&str; 2]) -> NodeOffer {
    let pods = if fault.contains(&"pods") { "2" } else { "10" };
    NodeOffer {
        name: "n1".into(),
        allocatable: [
            ("cpu", "2"),
            ("memory", "1Gi"),
            ("pods", pods),
            ("ephemeral-storage", "1Gi"),
            ("example.com/gpu", "1"),
        ]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount.into())))
        .into(),
        labels: BTreeMap::from([("disk".into(), "ssd".into())]),
        taints: vec![Taint { key: "down".into(), effect: "NoExecute".into(), ..Taint::default() }],
        ..NodeOffer::default()
    }
}

/// Two pods that take half of the node.
fn taken() -> [Pod; 2] {
    let resources = json!({"requests": {"cpu": "500m", "memory": "256Mi"}});
    let pod = |name: &str, ports: Value| -> Pod {
        let container = json!({"name": "c", "resources": resources, "ports": ports});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": [container]}})).unwrap()
    };
    [pod("one", json!([{"containerPort": 80, "hostPort": 8080}])), pod("two", json!([]))]
}

/// A pod with these faults.
fn pod(faults: [&str; 2], kind: &str) -> Pod {
    let mut spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
        "tolerations": [{"operator": "Exists"}], "securityContext": {}});
    let mut metadata = json!({"name": "new"});
    match kind {
        "critical" => spec["priority"] = CRITICAL_PRIORITY.into(),
        "static" => metadata["annotations"] = json!({"kubernetes.io/config.source": "file"}),
        _ => {}
    }
    for fault in faults {
        let requests = &mut spec["containers"][0]["resources"]["requests"];
        match fault {
            "cpu" => requests["cpu"] = "1500m".into(),
            "memory" => requests["memory"] = "700Mi".into(),
            "disk" => requests["ephemeral-storage"] = "2Gi".into(),
            "extended resource" => requests["example.com/gpu"] = "2".into(),
            "unknown resource" => requests["example.com/other"] = "2".into(),
            "sysctl" => spec["securityContext"]["sysctls"] = json!([{"name": "kernel.shmmax", "value": "1"}]),
            "os label" => metadata["labels"] = json!({"kubernetes.io/os": "windows"}),
            "os field" => spec["os"] = json!({"name": "windows"}),
            "strict groups" => spec["securityContext"]["supplementalGroupsPolicy"] = "Strict".into(),
            "affinity" => spec["nodeSelector"] = json!({"disk": "hdd"}),
            "node name" => spec["nodeName"] = "n2".into(),
            "host port" => spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]),
            "taint" => spec["tolerations"] = json!([]),
            "apparmor" => spec["securityContext"]["appArmorProfile"] = json!({"type": "RuntimeDefault"}),
            _ => {}
        }
    }
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn verdict(faults: [&str; 2], kind: &str) -> String {
    let others = taken();
    let all: Vec<&Pod> = others.iter().collect();
    match admit(&pod(faults, kind), &node(faults), &all) {
        Ok(room) if room.victims.is_empty() => "taken".into(),
        Ok(room) => {
            let victims: Vec<&str> = room.victims.iter().map(|victim| name(victim)).collect();
            format!("taken after {} for {}", victims.join(" "), room.missing)
        }
        Err(refusal) => refusal.reason,
    }
}

#[test]
fn refusals() {
    let mut rows = Vec::new();
    for kind in ["ordinary", "critical", "static"] {
        for (index, first) in FAULTS.iter().enumerate() {
            for second in FAULTS.iter().skip(index) {
                if first == second && *first != "-" {
                    continue;
                }
                rows.push(vec![
                    kind.to_owned(),
                    (*first).to_owned(),
                    (*second).to_owned(),
                    verdict([first, second], kind),
                ]);
            }
        }
    }
    compare("admissions.txt", &render(&["pod", "fault", "and fault", "verdict"], &rows));
}

#[test]
fn messages() {
    let others = taken();
    let all: Vec<&Pod> = others.iter().collect();
    let rows: Vec<Vec<String>> = FAULTS
        .iter()
        .filter_map(|fault| {
            let refusal = admit(&pod([fault, "-"], "ordinary"), &node([fault, "-"]), &all).err()?;
            Some(vec![(*fault).to_owned(), refusal.reason, refusal.message])
        })
        .collect();
    compare("admission-messages.txt", &render(&["fault", "reason", "message"], &rows));
}
