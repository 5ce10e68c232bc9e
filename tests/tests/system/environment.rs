//! What a container is told: variables, names, addresses, files that the node writes.

use orlop_tests::case::{Case, condition};
use orlop_tests::world::until;
use serde_json::{Value, json};

/// env, envFrom, references to the pod's fields and to its resources, and `$(NAME)` in them.
pub fn variables(case: &Case<'_>) {
    case.make("configmaps", &json!({"metadata": {"name": "map"}, "data": {"COLOUR": "blue"}}));
    case.make("secrets", &json!({"metadata": {"name": "secret"}, "stringData": {"WORD": "open"}}));
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, what: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": what, "divisor": divisor}}});
    let env = json!([
        {"name": "PLAIN", "value": "one"},
        {"name": "BOTH", "value": "$(PLAIN)-$(MAP_COLOUR)-$(NONE)-$$(PLAIN)"},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "COLOUR"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "WORD"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        field("NAME", "metadata.name"), field("SPACE", "metadata.namespace"), field("UID", "metadata.uid"),
        field("NODE", "spec.nodeName"), field("ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"), field("IP", "status.podIP"),
        field("LABEL", "metadata.labels['tier']"), field("NOTE", "metadata.annotations['note']"),
        resource("CPU", "limits.cpu", "1m"), resource("MEMORY", "limits.memory", "1Mi"),
        resource("ASKED", "requests.memory", "1"),
    ]);
    let spec = json!({"restartPolicy": "Never", "containers": [{
        "name": "c", "image": orlop_tests::case::image("busybox"), "command": ["env"], "args": [],
        "env": env,
        "envFrom": [{"configMapRef": {"name": "map"}, "prefix": "MAP_"}, {"secretRef": {"name": "secret"}},
                    {"configMapRef": {"name": "nothing", "optional": true}}],
        "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}},
    }]});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "told", "labels": {"tier": "front"}, "annotations": {"note": "a b"}}, "spec": spec,
    });
    case.make("pods", &pod);
    let pod = case.until_ended("told");
    let log = case.log("told", "");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap();
    let host = pod["status"]["hostIP"].as_str().unwrap();
    for line in [
        "PLAIN=one",
        "BOTH=one-blue-$(NONE)-$(PLAIN)",
        "KEY=blue",
        "MAP_COLOUR=blue",
        "PASSWORD=open",
        "WORD=open",
        "NAME=told",
        &format!("SPACE={}", case.namespace),
        &format!("UID={uid}"),
        "NODE=node-1",
        "ACCOUNT=default",
        &format!("HOST_IP={host}"),
        &format!("IP={ip}"),
        "LABEL=front",
        "NOTE=a b",
        "CPU=250",
        "MEMORY=64",
        "ASKED=33554432",
        "HOSTNAME=told",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
    ] {
        let told = log.lines().any(|seen| seen == line);
        assert!(told || line.starts_with("KUBERNETES"), "{line} is missing:\n{log}");
    }
    assert!(!log.contains("ABSENT"), "{log}");
    assert!(log.contains("KUBERNETES_SERVICE_HOST="), "{log}");
}

/// A reference to what isn't there keeps the container from starting, and says which.
pub fn missing_references_are_named(case: &Case<'_>) {
    let env = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "k"}}}]);
    case.make_pod("waits", json!({"containers": [{"command": ["sleep", "1000"], "env": env}]}));
    let pod = case.until_pod("waits", "a config error", |pod| {
        orlop_tests::case::container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = &orlop_tests::case::container(&pod, "c")["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"absent\" not found");
    let volume = json!([{"name": "v", "secret": {"secretName": "nowhere"}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    case.make_pod("mounts", json!({"volumes": volume, "containers": [{"command": ["true"], "volumeMounts": mounts}]}));
    let _ = case.until_event("mounts", "FailedMount", "secret \"nowhere\" not found");
    case.make("configmaps", &json!({"metadata": {"name": "absent"}, "data": {"k": "now"}}));
    case.until_ready("waits");
    assert_eq!(case.exec("waits", "echo $X"), "now");
}

/// hostname, subdomain, /etc/hosts and resolv.conf as they are asked for.
pub fn names(case: &Case<'_>) {
    let script = "hostname; hostname -f; cat /etc/hosts /etc/resolv.conf; cat /etc/hostname";
    let spec = json!({
        "hostname": "front", "subdomain": "web",
        "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["redis.local", "cache"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["example.test"], "options": [{"name": "ndots", "value": "3"}]},
    });
    let log = case.output_of("named", spec, script);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "front");
    assert!(lines[1].starts_with(&format!("front.web.{}.svc.", case.namespace)), "{log}");
    for word in ["10.1.2.3\tredis.local\tcache", "nameserver 192.0.2.53", "search example.test", "options ndots:3"] {
        assert!(log.contains(word), "{word}:\n{log}");
    }
    assert!(log.contains(&format!("front.web.{}.svc.", case.namespace)), "{log}");
    let plain =
        case.output_of("plain", json!({}), "hostname; grep plain /etc/hosts; wget -q -O - http://localhost:1 || true");
    assert!(plain.starts_with("plain\n"), "{plain}");
}

/// A pod on the node's network sees the node's interfaces and has its address.
pub fn host_network(case: &Case<'_>) {
    let spec = json!({"hostNetwork": true, "containers": [
        {"command": ["sh", "-c", "exec httpd -f -p 18099 -h /etc"], "ports": [{"containerPort": 18099}]}]});
    case.make_pod("host", spec);
    let pod = case.until_ready("host");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    let page = until("it listens", || case.fetch("http://127.0.0.1:18099/passwd"));
    assert!(page.contains("root:"), "{page}");
    // Other cases' pods come and go meanwhile, and their interfaces with them.
    until("it sees the node's interfaces", || {
        let inside = case.exec("host", "ip -o link | wc -l");
        let outside = case.run("sh", &["-c", "ip -o link | wc -l"]).stdout;
        (inside.trim() == String::from_utf8_lossy(&outside).trim()).then_some(())
    });
}

/// A port of the node leads to the pod, from outside and from other pods, and is free again after it.
pub fn host_port(case: &Case<'_>) {
    let server = |port: u16| {
        json!({"containers": [{"command": ["sh", "-c", "mkdir /w; hostname > /w/name; exec httpd -f -p 8080 -h /w"],
            "ports": [{"containerPort": 8080, "hostPort": port}],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]})
    };
    case.make_pod("first", server(18080));
    let pod = case.until_ready("first");
    let host = pod["status"]["hostIP"].as_str().unwrap().to_string();
    let url = format!("http://{host}:18080/name");
    assert_eq!(case.fetch(&url).as_deref(), Some("first\n"));
    assert_eq!(case.fetch("http://127.0.0.1:18080/name").as_deref(), Some("first\n"));
    let other = case.output_of("other", json!({}), &format!("wget -q -O - {url}"));
    assert_eq!(other, "first");
    // Two pods can't have one port of the node.
    case.make_pod("second", server(18080));
    case.until_pod("second", "refused", |pod| {
        condition(pod, "PodScheduled") == "False" || pod["status"]["reason"] == "NodePorts"
    });
    assert!(case.say(&["delete", "pod", "second", "--grace-period=0", "--force"]).contains("second"));
    let _ = case.say(&["delete", "pod", "first"]);
    assert_eq!(case.fetch(&url), None);
}

/// Pods reach each other, themselves and the node by IP.
pub fn pods_reach_pods(case: &Case<'_>) {
    let server = json!({"containers": [{"command": ["sh", "-c", "mkdir /w; echo hi > /w/x; exec httpd -f -p 8080 -h /w"],
        "readinessProbe": {"httpGet": {"path": "/x", "port": 8080}, "periodSeconds": 1}}]});
    case.make_pod("server", server);
    let pod = case.until_ready("server");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    let url = format!("http://{ip}:8080/x");
    assert_eq!(case.output_of("client", json!({}), &format!("wget -q -O - {url}")), "hi");
    assert_eq!(case.exec("server", &format!("wget -q -O - {url}")), "hi");
    assert_eq!(case.fetch(&url).as_deref(), Some("hi\n"));
}

/// The token of the service account opens the API from inside, by the variables that every container has.
pub fn the_api_from_inside(case: &Case<'_>) {
    let script = r#"
import json, os, ssl, urllib.request
base = "/var/run/secrets/kubernetes.io/serviceaccount/"
token = open(base + "token").read()
namespace = open(base + "namespace").read()
context = ssl.create_default_context(cafile=base + "ca.crt")
url = "https://%s:%s" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
request = urllib.request.Request(url + "/apis/authentication.k8s.io/v1/selfsubjectreviews", body, headers)
answer = json.load(urllib.request.urlopen(request, context=context, timeout=10))
print(answer["status"]["userInfo"]["username"], namespace)
try:
    request = urllib.request.Request(url + "/api/v1/secrets", headers=headers)
    urllib.request.urlopen(request, context=context, timeout=10)
    print("too much")
except urllib.error.HTTPError as error:
    print(error.code)
"#;
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"image": orlop_tests::case::image("python"), "command": ["python3", "-c", script]}]});
    case.make_pod("inside", spec);
    let pod = case.until_ended("inside");
    let log = case.log("inside", "");
    let account = format!("system:serviceaccount:{0}:default {0}\n403", case.namespace);
    assert_eq!((log.as_str(), &pod["status"]["phase"]), (account.as_str(), &Value::from("Succeeded")));
}
