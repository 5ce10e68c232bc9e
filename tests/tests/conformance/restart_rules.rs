//! Restarts by the exit code of a container: of itself, and of its whole pod.

use orlop_tests::case::{Case, container};
use orlop_tests::world::until;
use serde_json::{Value, json};

/// Does something when a container ends with 42.
fn rule(action: &str) -> Value {
    json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}])
}

fn make(case: &Case<'_>, policy: &str, fields: Value) {
    case.make_pod("p", json!({"restartPolicy": policy, "containers": [fields]}));
}

fn until_restarted(case: &Case<'_>) {
    case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(2));
    assert_ne!(case.pod("p")["status"]["phase"], "Failed");
}

fn ends_for_good(case: &Case<'_>, code: u64) {
    let pod = case.until_ended("p");
    let now = container(&pod, "c");
    assert_eq!((&pod["status"]["phase"], &now["restartCount"]), (&json!("Failed"), &json!(0)));
    assert_eq!(now["state"]["terminated"]["exitCode"], code);
}

/// A code that a rule names is a reason to run again, whatever the policies say.
pub fn by_rule(case: &Case<'_>) {
    let fields =
        json!({"command": ["sh", "-c", "exit 42"], "restartPolicy": "Never", "restartPolicyRules": rule("Restart")});
    make(case, "Never", fields);
    until_restarted(case);
}

/// Another code is left to the container's policy.
pub fn not_by_rule(case: &Case<'_>) {
    let fields =
        json!({"command": ["sh", "-c", "exit 1"], "restartPolicy": "Never", "restartPolicyRules": rule("Restart")});
    make(case, "Never", fields);
    ends_for_good(case, 1);
}

/// A container that runs once does so in a pod that is restarted, too.
pub fn container_never(case: &Case<'_>) {
    make(case, "Always", json!({"command": ["sh", "-c", "exit 1"], "restartPolicy": "Never"}));
    ends_for_good(case, 1);
}

/// One that is restarted is so in a pod that runs once.
pub fn container_always(case: &Case<'_>) {
    make(case, "Never", json!({"command": ["sh", "-c", "exit 1"], "restartPolicy": "Always"}));
    until_restarted(case);
}

/// One that says nothing goes by its pod.
pub fn pod_always(case: &Case<'_>) {
    make(case, "Always", json!({"command": ["sh", "-c", "exit 1"]}));
    until_restarted(case);
}

/// All containers of a pod run again.
pub mod all {
    use super::{Case, Value, container, json, rule, until};

    fn with_rule(name: &str, script: &str, policy: &str) -> Value {
        json!({"name": name, "command": ["sh", "-c", script], "restartPolicy": policy,
            "restartPolicyRules": rule("RestartAllContainers"), "volumeMounts": [{"name": "work", "mountPath": "/work"}]})
    }

    fn plain(name: &str, script: &str) -> Value {
        json!({"name": name, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "work", "mountPath": "/work"}]})
    }

    fn sidecar() -> Value {
        let mut sidecar = plain("sidecar", "exec sleep 1000");
        sidecar["restartPolicy"] = "Always".into();
        sidecar
    }

    /// A script that ends with 42 the first time, after `first`, and then does `after`.
    fn once(first: &str, after: &str) -> String {
        format!("if [ -e /work/done ]; then {after}; else touch /work/done; {first}exit 42; fi")
    }

    fn make(case: &Case<'_>, init: Value, containers: Value) {
        case.make_pod(
            "p",
            json!({"restartPolicy": "Never", "volumes": [{"name": "work", "emptyDir": {}}],
            "initContainers": init, "containers": containers}),
        );
    }

    /// Waits until these containers have been restarted once, and these run; then all stay as they are.
    fn until_restarted(case: &Case<'_>, restarted: &[&str], running: &[&str]) {
        let is = |pod: &Value| {
            restarted.iter().all(|name| container(pod, name)["restartCount"].as_u64() >= Some(1))
                && running.iter().all(|name| !container(pod, name)["state"]["running"].is_null())
        };
        let before = case.until_pod("p", "all were restarted", is);
        // The address and what lies in the volumes stay.
        assert_eq!(case.pod("p")["status"]["podIP"], before["status"]["podIP"]);
        let counts =
            |pod: &Value| restarted.iter().map(|name| container(pod, name)["restartCount"].clone()).collect::<Vec<_>>();
        let stays = std::time::Instant::now();
        until("nothing is restarted for a while", || {
            let now = case.pod("p");
            assert_eq!(counts(&now), counts(&before), "restarted once more");
            (stays.elapsed().as_secs() >= 4).then_some(())
        });
        assert!(is(&case.pod("p")), "{}", case.pod("p")["status"]);
    }

    /// By a container.
    pub fn by_container(case: &Case<'_>) {
        let source = with_rule("source", &once("sleep 3; ", "exec sleep 1000"), "Never");
        let init = json!([plain("init", "true"), sidecar()]);
        make(case, init, json!([source, plain("regular", "exec sleep 1000")]));
        until_restarted(case, &["init", "sidecar", "source", "regular"], &["sidecar", "source", "regular"]);
    }

    /// By a sidecar.
    pub fn by_sidecar(case: &Case<'_>) {
        let source = with_rule("source", &once("sleep 5; ", "exec sleep 1000"), "Always");
        let init = json!([plain("init", "true"), sidecar(), source]);
        make(case, init, json!([plain("regular", "exec sleep 1000")]));
        until_restarted(case, &["init", "sidecar", "source", "regular"], &["sidecar", "source", "regular"]);
    }

    /// By an init container: what follows it has not run yet.
    pub fn by_init_container(case: &Case<'_>) {
        let source = with_rule("source", &once("", "exit 0"), "Never");
        let init = json!([sidecar(), plain("init", "true"), source]);
        make(case, init, json!([plain("regular", "exec sleep 1000")]));
        until_restarted(case, &["init", "sidecar", "source"], &["sidecar", "regular"]);
        assert_eq!(container(&case.pod("p"), "regular")["restartCount"], 0);
    }

    /// A container with the same rule that is ended for it does not begin it anew.
    pub fn without_a_loop(case: &Case<'_>) {
        let source = with_rule("source", &once("sleep 3; ", "exec sleep 1000"), "Never");
        let regular = with_rule("regular", "exec sleep 1000", "Never");
        make(case, json!([]), json!([source, regular]));
        until_restarted(case, &["source", "regular"], &["source", "regular"]);
    }

    /// By a container that was restarted alone before.
    pub fn by_restarted_container(case: &Case<'_>) {
        let script = "if [ -e /work/two ]; then exec sleep 1000; elif [ -e /work/one ]; then touch /work/two; sleep 2; exit 42; \
                      else touch /work/one; sleep 2; exit 1; fi";
        make(case, json!([]), json!([with_rule("source", script, "Always"), plain("regular", "exec sleep 1000")]));
        until_restarted(case, &["source", "regular"], &["source", "regular"]);
        let pod = case.pod("p");
        assert_eq!(
            (&container(&pod, "source")["restartCount"], &container(&pod, "regular")["restartCount"]),
            (&json!(2), &json!(1))
        );
    }
}
