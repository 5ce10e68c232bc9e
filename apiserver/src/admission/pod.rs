//! Pods on their way in: defaults, service account, priority, runtime class, tolerations, first status.

use serde_json::{Value, json};

use super::{pod_defaults, qos, service_account};
use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::registry;
use crate::rest::Part;
use crate::storage::ObjectKey;

/// Time that a pod stays on a node that is not ready or not reachable (`DefaultTolerationSeconds`), in seconds.
const TOLERATION_SECONDS: i64 = 300;

/// A new pod.
///
/// # Errors
/// When what it names is not there.
pub fn admit_create(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    pod_defaults::default_pod(new);
    service_account::admit(api, new)?;
    set_priority(api, new)?;
    add_tolerations(new);
    set_runtime_class(api, new)?;
    let class = qos::class(new.get("spec").unwrap_or(&Value::Null));
    new["status"] = json!({"phase": "Pending", "qosClass": class});
    if !object::items(new, "/spec/schedulingGates").is_empty() {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        object::set_condition(new, "PodScheduled", "False", "SchedulingGated", message);
    }
    Ok(())
}

/// A changed pod: ephemeral containers only by their part, the node only by binding.
///
/// # Errors
/// None at present.
pub fn admit_update(_api: &Api, part: Part, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    match part {
        Part::EphemeralContainers => {
            let added = new.pointer("/spec/ephemeralContainers").cloned();
            let revision = new.pointer("/metadata/resourceVersion").cloned();
            *new = old.clone();
            if let Some(revision) = revision {
                new["metadata"]["resourceVersion"] = revision;
            }
            match added {
                Some(added) => new["spec"]["ephemeralContainers"] = added,
                None => {
                    object::remove(&mut new["spec"], "ephemeralContainers");
                }
            }
        }
        Part::Main => {
            let mut spec = new.get("spec").cloned().unwrap_or_default();
            object::copy_key(old.get("spec").unwrap_or(&Value::Null), &mut spec, "ephemeralContainers");
            new["spec"] = spec;
        }
        _ => {}
    }
    pod_defaults::default_pod(new);
    if part == Part::Main {
        add_tolerations(new);
    }
    if part == Part::Main
        && let Some(grace) = object::number(new, "/spec/terminationGracePeriodSeconds")
        && grace < 0
        && object::number(old, "/spec/terminationGracePeriodSeconds").is_some_and(|old| old < 0)
    {
        new["spec"]["terminationGracePeriodSeconds"] = json!(1);
    }
    Ok(())
}

/// A status from the node: what a new status leaves out that never changes stays.
pub fn admit_status(new: &mut Value, old: &Value) {
    let status = object::map(new, "status");
    for key in ["qosClass", "observedGeneration"] {
        if let Some(kept) = old.pointer(&format!("/status/{key}")) {
            status.entry(key).or_insert_with(|| kept.clone());
        }
    }
}

fn set_priority(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    let pods = registry::core("pods");
    let name = object::text(new, "/spec/priorityClassName").to_string();
    let classes = registry::find("scheduling.k8s.io", "v1", "priorityclasses")
        .ok_or_else(|| ApiError::internal("no priority classes"))?;
    let store = |error| ApiError::from_store(error, classes, &name);
    let class = if name.is_empty() {
        let all = api.store.list_values(classes, None).map_err(store)?;
        // The lowest of several defaults counts.
        all.into_iter()
            .filter(|class| class.get("globalDefault").and_then(Value::as_bool) == Some(true))
            .min_by_key(|class| object::number(class, "/value").unwrap_or(0))
    } else {
        let found = api.store.get_value(&ObjectKey::new(classes, "", &name)).map_err(store)?;
        Some(found.ok_or_else(|| {
            ApiError::forbidden(pods, object::name(new), &format!("no PriorityClass with name {name} was found"))
        })?)
    };
    let (value, policy) = match &class {
        Some(class) => (object::number(class, "/value").unwrap_or(0), object::text(class, "/preemptionPolicy")),
        None => (0, "PreemptLowerPriority"),
    };
    if let Some(given) = object::number(new, "/spec/priority")
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(ApiError::forbidden(pods, object::name(new), &why));
    }
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let class_name = class.as_ref().map(|class| object::name(class).to_string());
    let spec = object::map(new, "spec");
    spec.insert("priority".into(), json!(value));
    spec.entry("preemptionPolicy").or_insert_with(|| json!(policy));
    if let Some(class_name) = class_name {
        spec.insert("priorityClassName".into(), json!(class_name));
    }
    Ok(())
}

/// Overhead and node selector of the runtime class.
fn set_runtime_class(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    let name = object::text(new, "/spec/runtimeClassName").to_string();
    if name.is_empty() {
        return Ok(());
    }
    let pods = registry::core("pods");
    let classes = registry::find("node.k8s.io", "v1", "runtimeclasses")
        .ok_or_else(|| ApiError::internal("no runtime classes"))?;
    let found = api
        .store
        .get_value(&ObjectKey::new(classes, "", &name))
        .map_err(|error| ApiError::from_store(error, classes, &name))?;
    let class = found.ok_or_else(|| {
        ApiError::forbidden(pods, object::name(new), &format!("pod rejected: RuntimeClass {name:?} not found"))
    })?;
    if let Some(overhead) = class.pointer("/overhead/podFixed") {
        new["spec"]["overhead"] = overhead.clone();
    }
    if let Some(selector) = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object) {
        let own = object::map(&mut new["spec"], "nodeSelector");
        for (key, value) in selector {
            if own.get(key).is_some_and(|other| other != value) {
                return Err(ApiError::forbidden(
                    pods,
                    &name,
                    "conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector",
                ));
            }
            own.insert(key.clone(), value.clone());
        }
    }
    if let Some(tolerations) = class.pointer("/scheduling/tolerations").and_then(Value::as_array) {
        let own = object::map(new, "spec").entry("tolerations").or_insert_with(|| json!([]));
        if let Some(own) = own.as_array_mut() {
            let fresh: Vec<Value> = tolerations.iter().filter(|item| !own.contains(item)).cloned().collect();
            own.extend(fresh);
        }
    }
    Ok(())
}

fn add_tolerations(new: &mut Value) {
    let spec = object::map(new, "spec");
    let own = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(own) = own.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = own.iter().any(|item| {
            let own_key = object::text(item, "/key");
            (own_key == key || own_key.is_empty()) && matches!(object::text(item, "/effect"), "NoExecute" | "")
        });
        if !tolerated {
            own.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
}
