//! Amounts that a pod asks for as a whole, and images as volumes.

use orlop_tests::case::{Case, image};
use serde_json::{Value, json};

/// Amounts: processors and memory, asked for and at most.
fn amounts(cpu: [&str; 2], memory: [&str; 2]) -> Value {
    json!({"requests": {"cpu": cpu[0], "memory": memory[0]}, "limits": {"cpu": cpu[1], "memory": memory[1]}})
}

/// Makes a pod and sees its class and its cgroup: shares, quota and memory at most.
fn assert_pod(
    case: &Case<'_>,
    name: &str,
    pod: Option<&Value>,
    containers: [&Value; 2],
    class: &str,
    cgroup: [u64; 3],
) {
    let container =
        |name: &str, resources: &Value| json!({"name": name, "command": ["sleep", "1000"], "resources": resources});
    let mut spec = json!({"containers": [container("one", containers[0]), container("two", containers[1])]});
    if let Some(resources) = pod {
        spec["resources"] = resources.clone();
    }
    case.make_pod(name, spec);
    let made = case.until_ready(name);
    assert_eq!(made["status"]["qosClass"], class, "{name}");
    assert_eq!(made["spec"]["resources"], pod.cloned().unwrap_or(Value::Null), "{name}");
    let read = |controller: &str, file: &str| {
        let path = case.cgroup(controller, name).join(file);
        std::fs::read_to_string(&path).ok().map(|text| text.trim().to_string())
    };
    let [shares, quota, memory] = cgroup;
    if let Some(old) = read("cpu", "cpu.shares") {
        assert_eq!(old, shares.to_string(), "{name}");
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), Some(quota.to_string()), "{name}");
        assert_eq!(read("memory", "memory.limit_in_bytes"), Some(memory.to_string()), "{name}");
    } else {
        assert_eq!(read("cpu", "cpu.weight"), Some((1 + (shares - 2) * 9999 / 262_142).to_string()), "{name}");
        assert_eq!(read("cpu", "cpu.max"), Some(format!("{quota} 100000")), "{name}");
        assert_eq!(read("memory", "memory.max"), Some(memory.to_string()), "{name}");
    }
}

/// By the pod or by its containers: class and cgroup are the same.
pub fn of_the_pod(case: &Case<'_>) {
    const MIB: u64 = 1 << 20;
    let none = json!({});
    let (first, second) = (amounts(["50m", "50m"], ["70Mi", "70Mi"]), amounts(["70m", "70m"], ["50Mi", "50Mi"]));
    assert_pod(case, "sum", None, [&first, &second], "Guaranteed", [122, 12_000, 120 * MIB]);
    let whole = amounts(["100m", "100m"], ["100Mi", "100Mi"]);
    let half = amounts(["50m", "100m"], ["50Mi", "100Mi"]);
    for (name, containers) in [("none", [&none, &none]), ("both", [&half, &half]), ("one", [&half, &none])] {
        assert_pod(case, name, Some(&whole), containers, "Guaranteed", [102, 10_000, 100 * MIB]);
    }
    let less = amounts(["20m", "100m"], ["20Mi", "100Mi"]);
    for (name, containers) in [("b-none", [&none, &none]), ("b-both", [&less, &less]), ("b-one", [&less, &none])] {
        assert_pod(case, name, Some(&half), containers, "Burstable", [51, 10_000, 100 * MIB]);
    }
}

/// Files of an image, pulled each time.
pub fn image_volume(case: &Case<'_>) {
    let spec = json!({
        "volumes": [{"name": "image", "image": {"reference": image("nonroot"), "pullPolicy": "Always"}}],
        "containers": [{"volumeMounts": [{"name": "image", "mountPath": "/image"}]}],
    });
    let script = "cat /image/etc/passwd; touch /image/file && exit 1; exit 0";
    let told = case.output_of("p", spec, script);
    assert!(told.contains("somebody:x:1234") && told.contains("Read-only file system"), "{told}");
}
