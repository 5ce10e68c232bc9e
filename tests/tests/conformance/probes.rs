//! Probes, of containers and of sidecars: one body for both.

use std::time::{Duration, Instant};

use orlop_tests::case::{Case, condition, container, image};
use orlop_tests::world::{until, until_within};
use serde_json::{Value, json};

use crate::shape::{Kind, event_count, second_of, seconds};

/// Serves its folder `/www` on 8080 and says in its log what was asked for; `then` is what its container does on. `NEAR` and
/// `FAR` are redirections.
fn web(then: &str) -> Value {
    let redirect = |page: &str, to: &str| {
        format!(
            "printf '#!/bin/sh\nprintf \"Status: 302 Found\\r\\nLocation: {to}\\r\\n\\r\\n\"\n' > /www{page}; chmod 755 /www{page}"
        )
    };
    let (near, far) = (redirect(NEAR, "/healthz"), redirect(FAR, "http://0.0.0.0:9/"));
    let serve = "httpd -f -vv -p 8080 -h /www";
    shell(&format!("mkdir -p /www/cgi-bin; echo ok > /www/healthz; {near}; {far}; {serve} & {then}; wait"))
}

/// A page of `web` that leads to its own `/healthz`.
const NEAR: &str = "/cgi-bin/near";
/// One that leads to another host.
const FAR: &str = "/cgi-bin/far";

/// Seconds that a probe waits for its answer where that is not what a case is about: one failure is enough to fail a
/// container, and the machine has much to do.
const PATIENCE: u32 = 5;

/// A probe of a page, which begins when the server listens.
fn http(path: &str) -> Value {
    let page = json!({"path": path, "port": 8080});
    json!({"httpGet": page, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 3, "timeoutSeconds": PATIENCE})
}

fn exec(script: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", script]}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": PATIENCE})
}

fn shell(script: &str) -> Value {
    json!({"command": ["sh", "-c", script]})
}

/// A probe with some of its fields changed.
fn with(mut probe: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        probe[name] = value.clone();
    }
    probe
}

/// Makes the pod `p` whose container (or sidecar) `c` has a probe.
fn make(case: &Case<'_>, kind: Kind, spec: Value, probes: Value) {
    kind.make_pod(case, "p", with(spec, probes), json!({}));
}

fn restarts(case: &Case<'_>) -> u64 {
    container(&case.pod("p"), "c")["restartCount"].as_u64().unwrap_or(0)
}

/// Waits for the first restart, and sees that a probe of this kind was the reason.
fn until_restarted(case: &Case<'_>, probe: &str) {
    case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"] == 1);
    case.until_event("p", "Unhealthy", &format!("{probe} probe"));
    case.until_event("p", "Killing", &format!("Container c failed {} probe, will be restarted", probe.to_lowercase()));
}

/// Waits until a probe of this kind has failed so many times.
fn until_failures(case: &Case<'_>, probe: &str, times: u64) {
    until(&format!("{times} failures of the {probe} probe"), || {
        (event_count(case, "p", "Unhealthy", &format!("{probe} probe")) >= times).then_some(())
    });
}

fn running(case: &Case<'_>) {
    case.until_pod("p", "running", |pod| !container(pod, "c")["state"]["running"].is_null());
}

fn is_ready(pod: &Value) -> bool {
    container(pod, "c")["ready"] == true || condition(pod, "Ready") == "True"
}

/// Waits until something happened often enough, while the container is never restarted.
fn lives_while(case: &Case<'_>, what: &str, mut done: impl FnMut() -> bool) {
    running(case);
    until(what, || {
        assert_eq!(restarts(case), 0, "restarted");
        done().then_some(())
    });
    assert_eq!(restarts(case), 0, "restarted");
    assert_eq!(event_count(case, "p", "Killing", "will be restarted"), 0);
}

/// Not ready before its readiness probe's delay is over, then ready, and never restarted.
pub fn readiness_after_its_delay(case: &Case<'_>, kind: Kind) {
    let probe = with(http("/healthz"), json!({"initialDelaySeconds": 6}));
    make(case, kind, web("true"), json!({"readinessProbe": probe}));
    let pod = case.until_ready("p");
    let started = second_of(&container(&pod, "c")["state"]["running"]["startedAt"]);
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|one| one["type"] == "Ready").unwrap();
    let delay = second_of(&ready["lastTransitionTime"]) - started;
    assert!(delay >= 5, "ready {delay} s after the start");
    assert_eq!(restarts(case), 0);
}

/// A readiness probe that fails keeps the pod from being ready and restarts nothing.
pub fn failing_readiness(case: &Case<'_>, kind: Kind) {
    make(case, kind, shell("exec sleep 1000"), json!({"readinessProbe": exec("false")}));
    lives_while(case, "five failures", || {
        assert!(!is_ready(&case.pod("p")));
        event_count(case, "p", "Unhealthy", "Readiness probe failed") >= 5
    });
}

/// A command that begins to fail ends the container.
pub fn exec_liveness_fails(case: &Case<'_>, kind: Kind) {
    let spec = shell("echo ok > /tmp/health; sleep 3; rm /tmp/health; exec sleep 1000");
    make(case, kind, spec, json!({"livenessProbe": with(exec("cat /tmp/health"), json!({"failureThreshold": 2}))}));
    until_restarted(case, "Liveness");
}

/// A command that succeeds does not.
pub fn exec_liveness_succeeds(case: &Case<'_>, kind: Kind) {
    let probe = with(exec("cat /tmp/health && echo probed >> /tmp/seen"), json!({"initialDelaySeconds": 2}));
    make(case, kind, shell("echo ok > /tmp/health; exec sleep 1000"), json!({"livenessProbe": probe}));
    running(case);
    lives_while(case, "five successes", || {
        let seen = case.say(&["exec", "p", "-c", "c", "--", "sh", "-c", "cat /tmp/seen || true"]);
        seen.matches("probed").count() >= 5
    });
}

/// A page that begins to fail ends the container.
pub fn http_liveness_fails(case: &Case<'_>, kind: Kind) {
    make(case, kind, web("sleep 6; rm /www/healthz"), json!({"livenessProbe": http("/healthz")}));
    until_restarted(case, "Liveness");
    case.until_event("p", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404");
}

/// A page that is there does not.
pub fn http_liveness_succeeds(case: &Case<'_>, kind: Kind) {
    make(case, kind, web("true"), json!({"livenessProbe": http("/healthz")}));
    lives_while(case, "five answers", || case.log("p", "c").matches("response:200").count() >= 5);
}

/// Neither does a port that takes connections.
pub fn tcp_liveness_succeeds(case: &Case<'_>, kind: Kind) {
    let probe = json!({"tcpSocket": {"port": 6379}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 3, "timeoutSeconds": PATIENCE});
    make(case, kind, json!({"image": image("redis")}), json!({"livenessProbe": probe}));
    let mut own = 0;
    lives_while(case, "five connections", || {
        let told = case.say(&["exec", "p", "-c", "c", "--", "redis-cli", "info", "stats"]);
        own += 1;
        let of = |line: &str| line.trim().strip_prefix("total_connections_received:")?.parse::<u64>().ok();
        told.lines().find_map(of).is_some_and(|all| all - own >= 5)
    });
}

/// The count of restarts goes up one by one and never down.
pub fn restarts_are_counted(case: &Case<'_>, kind: Kind) {
    make(case, kind, shell("exec sleep 1000"), json!({"livenessProbe": exec("false")}));
    let mut counts = vec![0];
    until_within(Duration::from_secs(150), "five restarts", || {
        let now = restarts(case);
        if now != *counts.last().unwrap() {
            counts.push(now);
        }
        (now >= 5).then_some(())
    });
    assert_eq!(counts, [0, 1, 2, 3, 4, 5]);
}

/// A command that takes longer than its probe allows is a failure.
pub fn exec_liveness_times_out(case: &Case<'_>, kind: Kind) {
    let probe = with(exec("sleep 60"), json!({"timeoutSeconds": 1}));
    make(case, kind, shell("exec sleep 1000"), json!({"livenessProbe": probe}));
    until_restarted(case, "Liveness");
}

/// For readiness, too.
pub fn exec_readiness_times_out(case: &Case<'_>, kind: Kind) {
    let probe = with(exec("sleep 60"), json!({"timeoutSeconds": 1}));
    make(case, kind, shell("exec sleep 1000"), json!({"readinessProbe": probe}));
    running(case);
    until_failures(case, "Readiness", 2);
    assert!(!is_ready(&case.pod("p")));
    assert_eq!(restarts(case), 0);
}

/// One that would have failed after its time is a failure as well.
pub fn exec_liveness_fails_late(case: &Case<'_>, kind: Kind) {
    let probe = with(exec("sleep 4; exit 1"), json!({"timeoutSeconds": 1}));
    make(case, kind, shell("exec sleep 1000"), json!({"livenessProbe": probe}));
    until_restarted(case, "Liveness");
}

/// A redirection to the same host is followed, and what is found there counts.
pub fn local_redirect(case: &Case<'_>, kind: Kind) {
    make(case, kind, web("sleep 6; rm /www/healthz"), json!({"livenessProbe": http(NEAR)}));
    until("the redirection is followed", || {
        assert_eq!(restarts(case), 0);
        case.log_if_any("p", "c").is_some_and(|log| log.contains("url:/healthz")).then_some(())
    });
    until_restarted(case, "Liveness");
    case.until_event("p", "Unhealthy", "statuscode: 404");
}

/// One to another host is not followed, and is a success with a warning.
pub fn foreign_redirect(case: &Case<'_>, kind: Kind) {
    make(case, kind, web("true"), json!({"livenessProbe": http(FAR)}));
    running(case);
    case.until_event("p", "ProbeWarning", "Liveness probe warning");
    lives_while(case, "five answers", || case.log("p", "c").matches("url:/cgi-bin/far").count() >= 5);
}

/// A container whose startup probe fails too often is ended.
pub fn startup_fails(case: &Case<'_>, kind: Kind) {
    let probes =
        json!({"startupProbe": with(exec("false"), json!({"failureThreshold": 3})), "livenessProbe": exec("true")});
    make(case, kind, shell("exec sleep 1000"), probes);
    until_restarted(case, "Startup");
    assert!(event_count(case, "p", "Unhealthy", "Startup probe failed") >= 3);
}

/// The liveness probe does not run before the startup probe has succeeded.
pub fn startup_delays_liveness(case: &Case<'_>, kind: Kind) {
    let probes =
        json!({"startupProbe": with(exec("false"), json!({"failureThreshold": 60})), "livenessProbe": exec("false")});
    make(case, kind, shell("exec sleep 1000"), probes);
    running(case);
    until_failures(case, "Startup", 5);
    assert_eq!(event_count(case, "p", "Unhealthy", "Liveness probe"), 0);
    assert_eq!(restarts(case), 0);
    assert_eq!(container(&case.pod("p"), "c")["started"], false);
}

/// It does afterwards.
pub fn liveness_after_startup(case: &Case<'_>, kind: Kind) {
    let startup = with(exec("cat /tmp/up"), json!({"failureThreshold": 60}));
    let spec = shell("sleep 4; touch /tmp/up; exec sleep 1000");
    make(case, kind, spec, json!({"startupProbe": startup, "livenessProbe": exec("false")}));
    until_restarted(case, "Liveness");
    let ended = container(&case.pod("p"), "c")["lastState"]["terminated"].clone();
    let lived = second_of(&ended["finishedAt"]) - second_of(&ended["startedAt"]);
    assert!(lived >= 3, "ended after {lived} s, before its startup was over");
}

/// Readiness is looked at as soon as the startup probe has succeeded, whatever its period.
pub fn ready_after_startup(case: &Case<'_>, kind: Kind) {
    let startup = with(exec("cat /tmp/up"), json!({"failureThreshold": 60}));
    let readiness = with(exec("true"), json!({"periodSeconds": 300}));
    make(case, kind, shell("exec sleep 1000"), json!({"startupProbe": startup, "readinessProbe": readiness}));
    running(case);
    until_failures(case, "Startup", 2);
    assert!(!is_ready(&case.pod("p")));
    let _ = case.say(&["exec", "p", "-c", "c", "--", "touch", "/tmp/up"]);
    let began = Instant::now();
    let pod = case.until_ready("p");
    assert_eq!(container(&pod, "c")["started"], true);
    assert!(seconds(began) < 10.0, "ready after {:.1} s", seconds(began));
    assert_eq!(restarts(case), 0);
}

/// A probe's own grace period goes before the pod's.
fn own_grace(case: &Case<'_>, kind: Kind, field: &str, name: &str) {
    let deaf = shell("trap '' TERM; while :; do sleep 0.2; done");
    let probe = with(exec("false"), json!({"terminationGracePeriodSeconds": 2}));
    kind.make_pod(case, "p", with(deaf, json!({field: probe})), json!({"terminationGracePeriodSeconds": 500}));
    case.until_event("p", "Killing", &format!("Container c failed {name} probe, will be restarted"));
    let began = Instant::now();
    case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"] == 1);
    assert!(seconds(began) < 20.0, "it took {:.1} s", seconds(began));
    assert_eq!(container(&case.pod("p"), "c")["lastState"]["terminated"]["exitCode"], 137);
}

/// Of a liveness probe.
pub fn grace_of_liveness(case: &Case<'_>, kind: Kind) {
    own_grace(case, kind, "livenessProbe", "liveness");
}

/// Of a startup probe.
pub fn grace_of_startup(case: &Case<'_>, kind: Kind) {
    own_grace(case, kind, "startupProbe", "startup");
}

/// etcd, which answers the gRPC health protocol on its client port.
fn etcd() -> Value {
    let urls = ["--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://127.0.0.1:2379"];
    let mut command = vec!["/etcd", "--data-dir=/data", "--log-level=warn"];
    command.extend(urls);
    json!({"image": "localhost/etcd:1", "imagePullPolicy": "Never", "command": command})
}

fn grpc(port: u16) -> Value {
    json!({"grpc": {"port": port}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 5, "timeoutSeconds": PATIENCE})
}

/// A server that says over gRPC that it serves is left alone.
pub fn grpc_liveness_succeeds(case: &Case<'_>, kind: Kind) {
    make(case, kind, etcd(), json!({"livenessProbe": grpc(2379)}));
    let pod = case.until_pod("p", "an address", |pod| pod["status"]["podIP"].is_string());
    let page = format!("http://{}:2379/metrics", pod["status"]["podIP"].as_str().unwrap());
    lives_while(case, "five answers", || {
        let metrics = case.fetch(&page).unwrap_or_default();
        let line = metrics.lines().find(|line| {
            line.starts_with("grpc_server_handled_total")
                && line.contains("grpc.health.v1.Health")
                && line.contains("grpc_code=\"OK\"")
                && line.contains("\"Check\"")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0) >= 5
    });
}

/// A port on which nobody speaks gRPC ends the container.
pub fn grpc_liveness_fails(case: &Case<'_>, kind: Kind) {
    make(case, kind, etcd(), json!({"livenessProbe": grpc(2333)}));
    until_restarted(case, "Liveness");
}

/// What a pod runs that takes its time to end, telling its probes that it does.
const ENDS_SLOWLY: &str = "touch /tmp/up; trap 'rm /tmp/up; sleep 6; echo ended by itself; exit 0' TERM; \
                           while :; do sleep 0.2; done";

/// Deletes the pod, and waits until it is shown as not ready while its container still runs.
fn not_ready_while_ending(case: &Case<'_>, kind: Kind, probes: Value) {
    let spec = json!({"terminationGracePeriodSeconds": 30});
    kind.make_pod(case, "p", with(shell(ENDS_SLOWLY), probes), spec);
    case.until_ready("p");
    let _ = case.say(&["delete", "pod", "p", "--wait=false"]);
    case.until_pod("p", "not ready and still running", |pod| {
        pod["metadata"]["deletionTimestamp"].is_string()
            && condition(pod, "Ready") == "False"
            && container(pod, "c")["ready"] == false
            && !container(pod, "c")["state"]["running"].is_null()
    });
}

/// A readiness probe goes on while its pod ends.
pub fn readiness_while_ending(case: &Case<'_>, kind: Kind) {
    not_ready_while_ending(case, kind, json!({"readinessProbe": exec("cat /tmp/up")}));
    case.until_gone("p");
}

/// A liveness probe doesn't.
pub fn no_liveness_while_ending(case: &Case<'_>, kind: Kind) {
    let probe = exec("cat /tmp/up");
    let later = with(probe.clone(), json!({"initialDelaySeconds": 2}));
    not_ready_while_ending(case, kind, json!({"readinessProbe": probe, "livenessProbe": later}));
    let began = Instant::now();
    let log = case.follow("p", "c");
    assert!(log.ends_with("ended by itself"), "its time was cut short: {log}");
    assert!(seconds(began) > 2.0, "it went on after it was not ready");
    assert_eq!(event_count(case, "p", "Unhealthy", "Liveness probe failed"), 0);
    assert_eq!(event_count(case, "p", "Killing", "will be restarted"), 0);
    case.until_gone("p");
}

crate::both![
    readiness_after_its_delay,
    failing_readiness,
    exec_liveness_fails,
    exec_liveness_succeeds,
    http_liveness_fails,
    tcp_liveness_succeeds,
    restarts_are_counted,
    http_liveness_succeeds,
    exec_liveness_times_out,
    exec_readiness_times_out,
    exec_liveness_fails_late,
    local_redirect,
    foreign_redirect,
    startup_fails,
    startup_delays_liveness,
    liveness_after_startup,
    ready_after_startup,
    grace_of_liveness,
    grace_of_startup,
    grpc_liveness_succeeds,
    grpc_liveness_fails,
    readiness_while_ending,
    no_liveness_while_ending,
];
