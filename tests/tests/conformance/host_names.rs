//! Host names of pods that override all others.

use orlop_tests::case::{Case, image};
use serde_json::{Value, json};

/// What the pod is called inside.
fn named(case: &Case<'_>, spec: Value) -> String {
    case.output_of("p", spec, "cat /proc/sys/kernel/hostname")
}

/// Whether the API takes a pod; if not, what it says.
fn refusal(case: &Case<'_>, mut spec: Value) -> String {
    spec["containers"] = json!([{"name": "c", "image": image("busybox")}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let (code, told) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&pod)).unwrap();
    assert_eq!((code, &told["reason"]), (422, &json!("Invalid")), "{told}");
    told["message"].as_str().unwrap().to_string()
}

/// A name with dots.
pub fn with_dots(case: &Case<'_>) {
    assert_eq!(named(case, json!({"hostnameOverride": "override.example.host"})), "override.example.host");
}

/// It goes before `hostname`.
pub fn before_hostname(case: &Case<'_>) {
    assert_eq!(named(case, json!({"hostname": "plain", "hostnameOverride": "override-host"})), "override-host");
}

/// Alone.
pub fn alone(case: &Case<'_>) {
    assert_eq!(named(case, json!({"hostnameOverride": "override-host"})), "override-host");
}

/// With a subdomain, which stays in the hosts file.
pub fn with_subdomain(case: &Case<'_>) {
    let spec = json!({"subdomain": "t", "hostnameOverride": "override-host"});
    let told = case.output_of("p", spec, "cat /proc/sys/kernel/hostname /etc/hosts");
    assert!(told.starts_with("override-host\n"), "{told}");
    assert!(told.contains(&format!("p.t.{}.svc", case.namespace)), "{told}");
}

/// Not together with the full name as host name.
pub fn not_with_full_name(case: &Case<'_>) {
    let told = refusal(case, json!({"setHostnameAsFQDN": true, "hostnameOverride": "override-host"}));
    assert!(told.contains("hostnameOverride") || told.contains("setHostnameAsFQDN"), "{told}");
}

/// Not on the machine's network.
pub fn not_on_host_network(case: &Case<'_>) {
    let told = refusal(case, json!({"hostNetwork": true, "hostnameOverride": "override-host"}));
    assert!(told.contains("hostnameOverride") || told.contains("hostNetwork"), "{told}");
}

/// Not one that is no name.
pub fn not_any_text(case: &Case<'_>) {
    let told = refusal(case, json!({"hostnameOverride": "Not_A_Name"}));
    assert!(told.contains("hostnameOverride"), "{told}");
}
