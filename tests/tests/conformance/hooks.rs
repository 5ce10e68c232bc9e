//! Hooks of containers and of sidecars: by command, by HTTP and HTTPS, by waiting.

use std::time::Instant;

use orlop_tests::case::{Case, container, image};
use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::shape::{Kind, seconds};

/// Answers any path on 8080, and on 8443 by TLS, and says in its log what was asked for.
const SERVER: &str = "worker_processes 1;\nerror_log /dev/stderr;\nevents {}\nhttp {\n access_log /dev/stdout;\n \
                      server { listen 8080; return 200 told; }\n server { listen 8443 ssl; ssl_certificate /tls/tls.crt; \
                      ssl_certificate_key /tls/tls.key; return 200 told; }\n}\n";

/// Starts the server and returns its address.
fn server(case: &Case<'_>) -> String {
    let (certificate, key) = case.cluster.serving_pair();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let pair = json!({"tls.crt": read(&certificate), "tls.key": read(&key)});
    case.make("secrets", &json!({"metadata": {"name": "tls"}, "type": "kubernetes.io/tls", "stringData": pair}));
    case.make("configmaps", &json!({"metadata": {"name": "nginx"}, "data": {"nginx.conf": SERVER}}));
    let mounts = json!([{"name": "conf", "mountPath": "/conf"}, {"name": "tls", "mountPath": "/tls"}]);
    let volumes =
        json!([{"name": "conf", "configMap": {"name": "nginx"}}, {"name": "tls", "secret": {"secretName": "tls"}}]);
    case.make_pod(
        "server",
        json!({
            "volumes": volumes,
            "containers": [{"image": image("nginx"), "volumeMounts": mounts,
                "command": ["nginx", "-c", "/conf/nginx.conf", "-g", "daemon off;"],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1}}],
        }),
    );
    case.until_ready("server")["status"]["podIP"].as_str().unwrap().to_string()
}

/// Makes a pod with this hook in the given place, and if the hook is of its end, deletes it; the server has to be told.
fn is_told(case: &Case<'_>, kind: Kind, place: &str, hook: impl Fn(&str) -> Value) {
    let server = server(case);
    let polite = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let spec = json!({"command": ["sh", "-c", polite], "lifecycle": {place: hook(&server)}});
    kind.make_pod(case, "p", spec, json!({"terminationGracePeriodSeconds": 30}));
    case.until_ready("p");
    if place == "preStop" {
        assert!(!case.log("server", "").contains("/told"), "told before its time");
        let _ = case.say(&["delete", "pod", "p", "--wait=false"]);
        case.until_gone("p");
    }
    until("the server is told", || case.log("server", "").contains("GET /told").then_some(()));
}

fn exec(server: &str) -> Value {
    json!({"exec": {"command": ["wget", "-q", "-O", "/dev/null", format!("http://{server}:8080/told")]}})
}

fn http(server: &str) -> Value {
    json!({"httpGet": {"host": server, "port": 8080, "path": "/told"}})
}

fn https(server: &str) -> Value {
    json!({"httpGet": {"host": server, "port": 8443, "path": "/told", "scheme": "HTTPS"}})
}

/// After the start, by command.
pub fn post_start_exec(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "postStart", exec);
}

/// Before the end, by command.
pub fn pre_stop_exec(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "preStop", exec);
}

/// After the start, by HTTP.
pub fn post_start_http(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "postStart", http);
}

/// After the start, by HTTPS, whoever signed the certificate.
pub fn post_start_https(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "postStart", https);
}

/// Before the end, by HTTP.
pub fn pre_stop_http(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "preStop", http);
}

/// Before the end, by HTTPS.
pub fn pre_stop_https(case: &Case<'_>, kind: Kind) {
    is_told(case, kind, "preStop", https);
}

crate::both![post_start_exec, pre_stop_exec, post_start_http, post_start_https, pre_stop_http, pre_stop_https];

/// A pod that ends by itself on SIGTERM and waits for so many seconds before that.
fn waits(case: &Case<'_>, wait: u64) {
    let polite = json!({"command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
        "lifecycle": {"preStop": {"sleep": {"seconds": wait}}}});
    case.make_pod("p", json!({"terminationGracePeriodSeconds": 30, "containers": [polite]}));
    case.until_ready("p");
}

/// How long it takes until the pod is gone, in seconds.
fn until_gone(case: &Case<'_>, arguments: &[&str]) -> f64 {
    let began = Instant::now();
    let _ = case.say(&[&["delete", "pod", "p", "--wait=false"], arguments].concat());
    case.until_gone("p");
    seconds(began)
}

/// The end waits for the hook's time and not for the whole grace period.
pub fn sleep_before_end(case: &Case<'_>) {
    waits(case, 5);
    let took = until_gone(case, &[]);
    assert!((5.0..20.0).contains(&took), "{took:.1} s");
}

/// A second deletion with less time cuts the waiting short.
pub fn sleep_cut_short(case: &Case<'_>) {
    waits(case, 20);
    let _ = case.say(&["delete", "pod", "p", "--wait=false"]);
    case.until_event("p", "Killing", "Stopping container c");
    let took = until_gone(case, &["--grace-period=3"]);
    assert!(took < 12.0, "{took:.1} s");
}

/// A container that has ended already is not waited for.
pub fn sleep_of_ended_container(case: &Case<'_>) {
    let ended = json!({"command": ["true"], "lifecycle": {"preStop": {"sleep": {"seconds": 20}}}});
    case.make_pod(
        "p",
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 30, "containers": [ended,
        {"name": "other", "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]}]}),
    );
    case.until_pod("p", "one has ended, one runs", |pod| {
        !container(pod, "c")["state"]["terminated"].is_null() && !container(pod, "other")["state"]["running"].is_null()
    });
    let took = until_gone(case, &[]);
    assert!(took < 15.0, "{took:.1} s");
}

/// No time at all may be asked for.
pub fn sleep_of_zero(case: &Case<'_>) {
    waits(case, 0);
    let took = until_gone(case, &[]);
    assert!(took < 10.0, "{took:.1} s");
}

/// The signal that a container wants instead of SIGTERM.
pub fn stop_signal(case: &Case<'_>) {
    let script = "trap 'echo usr1; sleep 4; exit 0' USR1; trap 'echo term; exit 1' TERM; while :; do sleep 0.1; done";
    let spec = json!({"command": ["sh", "-c", script], "lifecycle": {"stopSignal": "SIGUSR1"}});
    let spec = json!({"os": {"name": "linux"}, "terminationGracePeriodSeconds": 30, "containers": [spec]});
    case.make_pod("p", spec);
    let pod = case.until_ready("p");
    assert_eq!(container(&pod, "c")["stopSignal"], "SIGUSR1");
    let _ = case.say(&["delete", "pod", "p", "--wait=false"]);
    until("the signal has come", || (case.log("p", "c") == "usr1").then_some(()));
    case.until_gone("p");
}
