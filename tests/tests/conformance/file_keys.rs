//! Variables whose values stand in a file of a volume.

use orlop_tests::case::{Case, container, image};
use orlop_tests::world::until;
use serde_json::{Value, json};

/// A variable of a key in `/data/config.env`.
fn key(name: &str, optional: bool) -> Value {
    of_file("config", "config.env", name, optional)
}

fn of_file(volume: &str, path: &str, name: &str, optional: bool) -> Value {
    let mut reference = json!({"volumeName": volume, "path": path, "key": name});
    if optional {
        reference["optional"] = true.into();
    }
    json!({"name": name, "valueFrom": {"fileKeyRef": reference}})
}

/// An init container that writes these values into the file, in quotes, as the file wants them.
fn writer(lines: &[&str]) -> Value {
    let quoted = |line: &&str| line.replacen('=', "='", 1) + "'\n";
    let script = format!("printf \"{}\" > /data/config.env", lines.iter().map(quoted).collect::<String>());
    json!({"name": "writer", "image": image("busybox"), "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "config", "mountPath": "/data"}]})
}

fn pod(lines: &[&str], containers: Value) -> Value {
    json!({"restartPolicy": "Never", "volumes": [{"name": "config", "emptyDir": {}}],
        "initContainers": [writer(lines)], "containers": containers})
}

/// One container, two keys.
pub fn variables(case: &Case<'_>) {
    let env = json!([key("CONFIG_1", false), key("CONFIG_2", false)]);
    let spec = pod(&["CONFIG_1=value1", "CONFIG_2=value2"], json!([{"env": env}]));
    assert_eq!(case.output_of("p", spec, "env | grep CONFIG | sort"), "CONFIG_1=value1\nCONFIG_2=value2");
}

/// Several containers, each with a key of its own.
pub fn of_several_containers(case: &Case<'_>) {
    let one = |number: u32| {
        json!({"name": format!("c{number}"), "env": [key(&format!("CONFIG_{number}"), false)],
            "command": ["sh", "-c", "env | grep CONFIG"]})
    };
    let lines = ["CONFIG_1=value1", "CONFIG_2=value2", "CONFIG_3=value3"];
    case.make_pod("p", pod(&lines, json!([one(1), one(2), one(3)])));
    assert_eq!(case.until_ended("p")["status"]["phase"], "Succeeded");
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(case.log("p", &format!("c{}", number + 1)), *line);
    }
}

/// A key that may be missing is missing.
pub fn optional_key(case: &Case<'_>) {
    let spec = pod(&["THERE=value"], json!([{"env": [key("THERE", false), key("ABSENT", true)]}]));
    assert_eq!(case.output_of("p", spec, "env | grep -E 'THERE|ABSENT'"), "THERE=value");
}

/// Hooks after the start see it.
pub fn post_start(case: &Case<'_>) {
    let hook = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo told $WORD > /tmp/told"]}}});
    let container = json!({"env": [key("WORD", false)], "lifecycle": hook});
    let script = "until [ -s /tmp/told ]; do sleep 0.1; done; cat /tmp/told";
    assert_eq!(case.output_of("p", pod(&["WORD=value"], json!([container])), script), "told value");
}

/// Hooks before the end, too.
pub fn pre_stop(case: &Case<'_>) {
    let hook = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo told $WORD > /proc/1/fd/1; sleep 4"]}}});
    let container = json!({"env": [key("WORD", false)], "lifecycle": hook,
        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]});
    let mut spec = pod(&["WORD=value"], json!([container]));
    spec["terminationGracePeriodSeconds"] = 30.into();
    case.make_pod("p", spec);
    case.until_ready("p");
    let _ = case.say(&["delete", "pod", "p", "--wait=false"]);
    until("the hook was run", || (case.log("p", "c") == "told value").then_some(()));
    case.until_gone("p");
}

/// Makes a pod that the API refuses.
fn is_refused(case: &Case<'_>, spec: Value, words: &str) {
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let (code, told) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&pod)).unwrap();
    assert_eq!((code, &told["reason"]), (422, &json!("Invalid")), "{told}");
    assert!(told["message"].as_str().unwrap().contains(words), "{told}");
}

fn plain(env: Value) -> Value {
    json!([{"name": "c", "image": image("busybox"), "env": env}])
}

/// A volume that the pod doesn't have.
pub fn unknown_volume(case: &Case<'_>) {
    let env = json!([of_file("none", "config.env", "WORD", false)]);
    is_refused(case, pod(&["WORD=value"], plain(env)), "fileKeyRef.volumeName");
}

/// One that is no emptyDir.
pub fn other_volume(case: &Case<'_>) {
    let env = json!([of_file("config", "config.env", "WORD", false)]);
    let spec = json!({"volumes": [{"name": "config", "secret": {"secretName": "s"}}], "containers": plain(env)});
    is_refused(case, spec, "fileKeyRef.volumeName");
}

/// A file or a key that isn't there keeps the container from starting.
pub fn missing(case: &Case<'_>) {
    let no_file =
        json!({"name": "no-file", "command": ["true"], "env": [of_file("config", "none.env", "WORD", false)]});
    let no_key = json!({"name": "no-key", "command": ["true"], "env": [key("ABSENT", false)]});
    case.make_pod("p", pod(&["WORD=value"], json!([no_file, no_key])));
    for name in ["no-file", "no-key"] {
        case.until_pod("p", "the container can't be made", |pod| {
            container(pod, name)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
    }
}

/// They may be missing where that is said.
pub fn optional_file_or_key(case: &Case<'_>) {
    let env = json!([of_file("config", "none.env", "NO_FILE", true), key("NO_KEY", true), key("WORD", false)]);
    let spec = pod(&["WORD=value"], json!([{"env": env}]));
    assert_eq!(case.output_of("p", spec, "env | grep -E 'NO_FILE|NO_KEY|WORD'"), "WORD=value");
}

/// Init containers have such variables as well.
pub fn of_init_container(case: &Case<'_>) {
    let mut spec = pod(&["WORD=value"], json!([{"command": ["true"]}]));
    let reader = json!({"name": "reader", "env": [key("WORD", false)], "command": ["sh", "-c", "env | grep WORD"]});
    spec["initContainers"].as_array_mut().unwrap().push(reader);
    case.make_pod("p", spec);
    assert_eq!(case.until_ended("p")["status"]["phase"], "Succeeded");
    assert_eq!(case.log("p", "reader"), "WORD=value");
}

/// Not of another kind of volume.
pub fn init_container_of_other_volume(case: &Case<'_>) {
    let env = json!([of_file("config", "config.env", "WORD", false)]);
    let init = json!([{"name": "init", "image": image("busybox"), "env": env}]);
    let spec = json!({"volumes": [{"name": "config", "configMap": {"name": "m"}}], "initContainers": init,
        "containers": plain(json!([]))});
    is_refused(case, spec, "initContainers[0].env[0].valueFrom.fileKeyRef.volumeName");
}

/// Ephemeral containers have them.
pub fn of_ephemeral_container(case: &Case<'_>) {
    case.make_pod("p", pod(&["WORD=value"], json!([{"command": ["sleep", "1000"]}])));
    case.until_ready("p");
    let debugger = json!({"name": "debug", "image": image("busybox"), "env": [key("WORD", false)],
        "command": ["sh", "-c", "env | grep WORD"]});
    let change = json!({"spec": {"ephemeralContainers": [debugger]}}).to_string();
    let _ =
        case.say(&["patch", "pod", "p", "--subresource=ephemeralcontainers", "--type=strategic", "--patch", &change]);
    case.until_pod("p", "it has ended", |pod| !container(pod, "debug")["state"]["terminated"].is_null());
    assert_eq!(case.log("p", "debug"), "WORD=value");
}
