//! Pods of all shapes, by the dice.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::sim::Dice;

/// A pod as the API server would keep it.
pub fn api_pod(dice: &mut Dice, serial: u64, name: &str) -> Pod {
    let mut value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "uid": format!("u{serial}"), "labels": {"app": "a"}},
        "spec": spec(dice),
        "status": {"phase": "Pending", "qosClass": "BestEffort"}});
    value["spec"]["nodeName"] = "node".into();
    serde_json::from_value(value).unwrap()
}

/// The file of a static pod. The uid is given, since one of the agent's own would depend on the folder's path.
pub fn static_pod(dice: &mut Dice, serial: u64, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "uid": format!("f{serial}")}, "spec": spec(dice)})
}

fn spec(dice: &mut Dice) -> Value {
    let policy = dice.pick(&["Always", "Always", "OnFailure", "Never"]);
    let init = match dice.between(0, 3) {
        0 | 1 => 0,
        2 => 1,
        _ => dice.between(1, 3),
    };
    let inits: Vec<Value> = (0..init)
        .map(|index| {
            let sidecar = dice.hits(0.4);
            let mut value = container(dice, &format!("i{index}"), sidecar);
            if sidecar {
                value["restartPolicy"] = "Always".into();
            }
            value
        })
        .collect();
    let apps: Vec<Value> = (0..dice.pick(&[1, 1, 2, 3]))
        .map(|index| {
            let mut value = container(dice, &format!("a{index}"), true);
            rules(dice, &mut value);
            value
        })
        .collect();
    let mut spec = json!({"restartPolicy": policy, "initContainers": inits, "containers": apps,
        "terminationGracePeriodSeconds": dice.pick(&[1, 3, 10, 30])});
    if dice.hits(0.1) {
        spec["activeDeadlineSeconds"] = dice.between(5, 60).into();
    }
    spec
}

fn container(dice: &mut Dice, name: &str, probed: bool) -> Value {
    let image = dice.pick(&["x:1", "x:1", "y:1", "z:1"]);
    let mut value = json!({"name": name, "image": image});
    if !probed {
        return value;
    }
    for (field, chance) in [("startupProbe", 0.2), ("livenessProbe", 0.2), ("readinessProbe", 0.3)] {
        if dice.hits(chance) {
            value[field] = json!({"exec": {"command": [field]}, "periodSeconds": dice.pick(&[5, 10, 20]),
                "failureThreshold": dice.pick(&[1, 3]), "timeoutSeconds": 1});
            if field == "livenessProbe" && dice.hits(0.3) {
                value[field]["terminationGracePeriodSeconds"] = 1.into();
            }
        }
    }
    let mut hooks = json!({});
    if dice.hits(0.15) {
        hooks["postStart"] = json!({"exec": {"command": ["postStart"]}});
    }
    if dice.hits(0.2) {
        hooks["preStop"] = match dice.between(0, 1) {
            0 => json!({"exec": {"command": ["preStop"]}}),
            _ => json!({"sleep": {"seconds": dice.between(1, 20)}}),
        };
    }
    if hooks != json!({}) {
        value["lifecycle"] = hooks;
    }
    value
}

fn rules(dice: &mut Dice, value: &mut Value) {
    if !dice.hits(0.2) {
        return;
    }
    value["restartPolicy"] = dice.pick(&["Always", "OnFailure", "Never"]).into();
    if dice.hits(0.6) {
        let action = dice.pick(&["Restart", "RestartAllContainers"]);
        let operator = dice.pick(&["In", "In", "NotIn"]);
        let code = dice.pick(&[0, 42, 88]);
        // A rule that holds for good ends would go on for ever.
        let (operator, code) = match (operator, code) {
            ("In", 0) => ("In", 42),
            ("NotIn", 42 | 88) => ("NotIn", 0),
            other => other,
        };
        value["restartPolicyRules"] =
            json!([{"action": action, "exitCodes": {"operator": operator, "values": [code]}}]);
    }
}
