//! Startup, liveness and readiness probes, by exec, HTTP and TCP.

use orlop_tests::case::{Case, condition, container};
use serde_json::{Value, json};

/// A web server of one file that is there or not.
const SERVER: &str = "mkdir -p /www; echo ok > /www/ok; exec httpd -f -p 8080 -h /www";

fn ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

/// A pod with one probe is ready, then not, then ready again, without a restart.
fn readiness(case: &Case<'_>, name: &str, script: &str, probe: Value, spoil: &str, mend: &str) {
    let mut probe = probe;
    probe["periodSeconds"] = 1.into();
    probe["failureThreshold"] = 1.into();
    let container_spec = json!({"command": ["sh", "-c", script], "readinessProbe": probe,
        "ports": [{"name": "web", "containerPort": 8080}]});
    case.make_pod(name, json!({"containers": [container_spec]}));
    case.until_ready(name);
    let _ = case.exec(name, spoil);
    let pod = case.until_pod(name, "not ready", |pod| !ready(pod));
    assert_eq!(condition(&pod, "ContainersReady"), "False");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!(told["reason"], "ContainersNotReady");
    assert!(told["message"].as_str().unwrap().contains("containers with unready status: [c]"), "{told}");
    case.until_event(name, "Unhealthy", "Readiness probe failed");
    let _ = case.exec(name, mend);
    case.until_ready(name);
    assert_eq!(container(&case.pod(name), "c")["restartCount"], 0);
}

/// By a command in the container.
pub fn readiness_by_exec(case: &Case<'_>) {
    let probe = json!({"exec": {"command": ["cat", "/tmp/ok"]}});
    let script = "touch /tmp/ok; exec sleep 1000";
    readiness(case, "exec", script, probe, "rm /tmp/ok", "touch /tmp/ok");
}

/// By a page, on a named port.
pub fn readiness_by_http(case: &Case<'_>) {
    let probe = json!({"httpGet": {"path": "/ok", "port": "web"}});
    readiness(case, "http", SERVER, probe, "mv /www/ok /www/no", "mv /www/no /www/ok");
}

/// By a connection.
pub fn readiness_by_tcp(case: &Case<'_>) {
    let probe = json!({"tcpSocket": {"port": 8080}});
    let script = "touch /tmp/on; while :; do if [ -e /tmp/on ]; then httpd -f -p 8080 -h /tmp & echo $! > /tmp/pid; \
                  while [ -e /tmp/on ]; do sleep 0.1; done; kill $(cat /tmp/pid); fi; sleep 0.1; done";
    readiness(case, "tcp", script, probe, "rm /tmp/on", "touch /tmp/on");
}

/// A container that fails its liveness probe is killed and started again, with the events that say so.
pub fn liveness_restarts(case: &Case<'_>) {
    let make = |name: &str, probe: Value| {
        let mut probe = probe;
        for (key, value) in [("periodSeconds", 1), ("failureThreshold", 2), ("timeoutSeconds", 5)] {
            probe[key] = value.into();
        }
        let spec = json!({"containers": [{"command": ["sh", "-c", SERVER], "livenessProbe": probe}]});
        case.make_pod(name, spec);
    };
    make("live-http", json!({"httpGet": {"path": "/none", "port": 8080}}));
    make("live-exec", json!({"exec": {"command": ["false"]}}));
    make("live-tcp", json!({"tcpSocket": {"port": 9999}}));
    for name in ["live-http", "live-exec", "live-tcp"] {
        let pod = case.until_pod(name, "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(1));
        let last = &container(&pod, "c")["lastState"]["terminated"];
        assert_eq!(last["reason"], "Error", "{last}");
        case.until_event(name, "Unhealthy", "Liveness probe failed");
        case.until_event(name, "Killing", "Container c failed liveness probe, will be restarted");
    }
    let refused = case.until_event("live-tcp", "Unhealthy", "9999: connect: ");
    assert!(refused.to_lowercase().contains("connection refused"), "{refused}");
    case.until_event("live-http", "Unhealthy", "HTTP probe failed with statuscode: 404");
}

/// Neither of the others runs before the startup probe has succeeded; one that never does ends the container.
pub fn startup_comes_first(case: &Case<'_>) {
    let slow = json!({
        "command": ["sh", "-c", "sleep 3; touch /tmp/up; exec sleep 1000"],
        "startupProbe": {"exec": {"command": ["cat", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30},
        "livenessProbe": {"exec": {"command": ["cat", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5},
    });
    case.make_pod("slow", json!({"containers": [slow]}));
    let never = json!({
        "command": ["sleep", "1000"],
        "startupProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2},
    });
    case.make_pod("never", json!({"containers": [never]}));
    for (name, mut startup) in
        [("by-http", json!({"httpGet": {"path": "/", "port": 8080}})), ("by-tcp", json!({"tcpSocket": {"port": 8080}}))]
    {
        startup["periodSeconds"] = 1.into();
        startup["failureThreshold"] = 30.into();
        let late = "mkdir /w; echo hi > /w/index.html; sleep 2; exec httpd -f -p 8080 -h /w";
        let liveness = json!({"exec": {"command": ["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]},
            "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5});
        case.make_pod(
            name,
            json!({"containers": [
            {"command": ["sh", "-c", late], "startupProbe": startup, "livenessProbe": liveness}]}),
        );
    }
    let pod = case.until_pod("slow", "running", |pod| !container(pod, "c")["state"]["running"].is_null());
    assert_eq!(container(&pod, "c")["started"], false);
    let pod = case.until_ready("slow");
    assert_eq!((&container(&pod, "c")["started"], &container(&pod, "c")["restartCount"]), (&json!(true), &json!(0)));
    for name in ["by-http", "by-tcp"] {
        let pod = case.until_ready(name);
        assert_eq!(container(&pod, "c")["restartCount"], 0, "{name}");
        case.until_event(name, "Unhealthy", "Startup probe failed");
    }
    case.until_pod("never", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(1));
    case.until_event("never", "Killing", "Container c failed startup probe, will be restarted");
}
