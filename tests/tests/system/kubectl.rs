//! Each verb of an unmodified `kubectl`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use orlop_tests::case::{Case, condition, container, image};
use orlop_tests::place::{debian, foreign};
use orlop_tests::world::{read, until};
use serde_json::json;

/// A pod that says what it was started with and sleeps.
fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: main\n    image: {0}\n    command: [sh, -c, 'echo hello from main; exec sleep 1000']\n  \
         - name: side\n    image: {0}\n    command: [sh, -c, 'echo hello from side; exec sleep 1000']\n",
        image("busybox")
    )
}

/// Starts a `kubectl` whose output is read while it runs.
fn start(case: &Case<'_>, arguments: &[&str]) -> Child {
    let mut command = case.kubectl(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start kubectl")
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// apply makes, says "unchanged", changes, and names a wrong field.
pub fn apply(case: &Case<'_>) {
    let apply = |text: &str| {
        let output = case.feed(&["apply", "-f", "-"], text);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert_eq!(apply(&pod("a")), "pod/a created\n");
    assert_eq!(apply(&pod("a")), "pod/a unchanged\n");
    assert_eq!(apply(&pod("a").replace("labels: {app: a}", "labels: {app: b}")), "pod/a configured\n");
    case.until_ready("a");
    let wrong = apply(&pod("b").replace("command:", "comand:"));
    assert!(wrong.contains("unknown field \"spec.containers[0].comand\""), "{wrong}");
    let wrong = apply(&pod("b").replace("name: main", "name: Main"));
    assert!(wrong.contains("spec.containers[0].name") && wrong.contains("Main"), "{wrong}");
}

/// get as a table, wide, as YAML, by label and by path, and watched.
pub fn get(case: &Case<'_>) {
    let watch = start(case, &["get", "pods", "--watch", "--no-headers"]);
    case.apply(&pod("seen"));
    let ready = case.until_ready("seen");
    let table = case.say(&["get", "pods"]);
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(table.lines().next().unwrap()), ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(words(table.lines().nth(1).unwrap())[..4], ["seen", "2/2", "Running", "0"]);
    let wide = case.say(&["get", "pods", "-o", "wide"]);
    let ip = ready["status"]["podIP"].as_str().unwrap();
    assert!(wide.contains("NOMINATED NODE") && wide.contains(ip) && wide.contains("node-1"), "{wide}");
    let yaml = case.say(&["get", "pod", "seen", "-o", "yaml"]);
    assert!(yaml.contains("kind: Pod") && yaml.contains("  phase: Running"), "{yaml}");
    assert_eq!(case.say(&["get", "pods", "-l", "app=seen", "-o", "name"]), "pod/seen");
    assert_eq!(case.say(&["get", "pods", "--field-selector", "status.phase=Running", "-o", "name"]), "pod/seen");
    assert_eq!(case.say(&["get", "pod", "seen", "-o", "jsonpath={.spec.containers[*].name}"]), "main side");
    assert!(case.say(&["get", "nodes", "-o", "wide"]).contains("Ready"));
    assert!(case.refused(&["get", "pod", "nothing"]).contains("pods \"nothing\" not found"));
    let mut watch = watch;
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let seen = lines.map(Result::unwrap).find(|line| line.contains("Running") && line.contains("2/2"));
    assert!(seen.is_some_and(|line| line.starts_with("seen")));
    end(watch);
}

/// describe tells state, conditions and events; events are listed on their own too.
pub fn describe_and_events(case: &Case<'_>) {
    case.apply(&pod("told"));
    case.until_ready("told");
    let text = case.say(&["describe", "pod", "told"]);
    for word in
        ["Status:           Running", "orlop://", "State:          Running", "Started", "Scheduled", "QoS Class:"]
    {
        assert!(text.contains(word), "{word}:\n{text}");
    }
    let node = case.say(&["describe", "node", "node-1"]);
    for word in ["KubeletReady", "orlop://", "v1.36.3", "told"] {
        assert!(node.contains(word), "{word}:\n{node}");
    }
    let events = case.say(&["events", "--for", "pod/told"]);
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "{reason}:\n{events}");
    }
}

/// logs of one container, of all, the last lines, with times, followed, of the one before.
pub fn logs(case: &Case<'_>) {
    case.apply(&pod("says"));
    let script =
        "for i in 1 2 3 4 5; do echo line $i; done; until [ -e /tmp/go ]; do sleep 0.1; done; echo last; exit 1";
    case.make_pod("counts", json!({"containers": [{"command": ["sh", "-c", script]}]}));
    case.until_ready("counts");
    case.until_ready("says");
    assert_eq!(case.say(&["logs", "says", "-c", "side"]), "hello from side");
    let all = case.say(&["logs", "says", "--all-containers", "--prefix"]);
    assert!(
        all.contains("[pod/says/main] hello from main") && all.contains("[pod/says/side] hello from side"),
        "{all}"
    );
    assert_eq!(case.say(&["logs", "counts", "--tail=2"]), "line 4\nline 5");
    let timed = case.say(&["logs", "counts", "--timestamps", "--tail=1"]);
    assert!(timed.starts_with("20") && timed.ends_with("Z line 5"), "{timed}");
    assert!(case.refused(&["logs", "counts", "--previous"]).contains("previous terminated container"));
    assert!(case.refused(&["logs", "says", "-c", "none"]).contains("container none is not valid for pod says"));
    let mut follow = start(case, &["logs", "-f", "counts"]);
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line == "line 5"));
    let _ = case.exec("counts", "touch /tmp/go");
    assert_eq!(lines.next().unwrap().unwrap(), "last");
    assert!(lines.next().is_none(), "it ends with the container");
    end(follow);
    case.until_pod("counts", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(1));
    let before = case.say(&["logs", "counts", "--previous"]);
    assert_eq!(before.lines().last(), Some("last"));
}

/// exec with output, input, exit codes and a terminal that has a size.
pub fn exec(case: &Case<'_>) {
    case.apply(&pod("runs"));
    case.until_ready("runs");
    assert_eq!(case.say(&["exec", "runs", "-c", "side", "--", "echo", "a b"]), "a b");
    let fed = case.feed(&["exec", "-i", "runs", "--", "sh", "-c", "cat; echo to stderr >&2; exit 5"], "typed\n");
    assert_eq!(String::from_utf8_lossy(&fed.stdout), "typed\n");
    assert!(String::from_utf8_lossy(&fed.stderr).contains("to stderr\n"));
    assert_eq!(fed.status.code(), Some(5));
    let missing = case.refused(&["exec", "runs", "--", "/no/such"]);
    assert!(missing.contains("/no/such"), "{missing}");
    // `script` gives kubectl a terminal; its size arrives inside.
    let _ = debian("script", "bsdutils");
    let line = format!(
        "stty rows 33 cols 99; {} --kubeconfig {} -n {} exec -it runs -c main -- sh -c 'tty; until stty size 2>/dev/null | grep -q 33; do sleep 0.1; done; stty size; echo $TERM'",
        foreign("kubectl").display(),
        case.cluster.kubeconfig.display(),
        case.namespace
    );
    let seen = read(case.cluster.world.command("script").args(["-qec", &line, "/dev/null"]));
    assert!(seen.contains("/dev/pts/") && seen.contains("33 99"), "{seen:?}");
    let large = case.say(&["exec", "runs", "-c", "main", "--", "sh", "-c", "seq 1 200000 | md5sum"]);
    let streamed = case.say(&["exec", "runs", "-c", "main", "--", "seq", "1", "200000"]);
    assert_eq!(streamed.lines().count(), 200_000, "{large}");
}

/// attach joins the container's own streams.
pub fn attach(case: &Case<'_>) {
    let container = json!({"stdin": true, "command": ["sh", "-c", "while read line; do echo got $line; done"]});
    case.make_pod("talks", json!({"containers": [container]}));
    case.until_ready("talks");
    let mut attach = start(case, &["attach", "-i", "talks"]);
    let mut input = attach.stdin.take().unwrap();
    let mut lines = BufReader::new(attach.stdout.take().unwrap()).lines();
    // Bytes that are sent before the stream is joined arrive too.
    input.write_all(b"one\n").unwrap();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line == "got one"));
    input.write_all(b"two\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "got two");
    end(attach);
    assert_eq!(case.log("talks", ""), "got one\ngot two");
}

/// run --rm -it style: a pod of one command whose output comes back.
pub fn run(case: &Case<'_>) {
    let image = format!("--image={}", image("busybox"));
    let said = case.feed(
        &[
            "run",
            "once",
            "--rm",
            "-i",
            "--quiet",
            "--restart=Never",
            &image,
            "--",
            "sh",
            "-c",
            "read x; echo $x twice: $x",
        ],
        "word\n",
    );
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(text.contains("word twice: word"), "{text}{}", String::from_utf8_lossy(&said.stderr));
    case.until_gone("once");
}

/// cp there and back, files and folders.
pub fn cp(case: &Case<'_>) {
    case.apply(&pod("holds"));
    case.until_ready("holds");
    let folder = case.cluster.world.folder().join(&case.namespace);
    std::fs::create_dir_all(folder.join("in/deep")).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[1]).collect();
    std::fs::write(folder.join("in/deep/data"), &bytes).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let _ = case.say(&["cp", &path("in"), "holds:/tmp/in", "-c", "main"]);
    assert_eq!(case.exec("holds", "wc -c < /tmp/in/deep/data"), "300000");
    let _ = case.say(&["cp", "holds:/tmp/in/deep/data", &path("back"), "-c", "main"]);
    assert_eq!(std::fs::read(folder.join("back")).unwrap(), bytes);
}

/// port-forward to a pod: several connections, and an error for a port where nobody listens.
pub fn port_forward(case: &Case<'_>) {
    let server = json!({"command": ["sh", "-c", "mkdir /w; seq 1 50000 > /w/x; exec httpd -f -p 8080 -h /w"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    case.make_pod("serves", json!({"containers": [server]}));
    case.until_ready("serves");
    let port = if case.cluster.backend.name() == "embedded" { 18081 } else { 18082 };
    let map = format!("{port}:8080");
    let mut forward = start(case, &["port-forward", "pod/serves", &map]);
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("Forwarding from"));
    let url = format!("http://127.0.0.1:{port}/x");
    for _ in 0..3 {
        assert_eq!(case.fetch(&url).map(|page| page.lines().count()), Some(50_000));
    }
    end(forward);
    let mut forward = start(case, &["port-forward", "pod/serves", &format!("{}:9", port + 2)]);
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("Forwarding from"));
    assert_eq!(case.fetch(&format!("http://127.0.0.1:{}/", port + 2)), None);
    let mut words = String::new();
    let mut errors = forward.stderr.take().unwrap();
    let mut bytes = [0; 4096];
    let count = errors.read(&mut bytes).unwrap();
    words.push_str(&String::from_utf8_lossy(&bytes[..count]));
    assert!(words.contains("9") && words.to_lowercase().contains("refused"), "{words}");
    end(forward);
}

/// debug adds an ephemeral container that sees the target's processes.
pub fn debug(case: &Case<'_>) {
    case.make_pod("ill", json!({"containers": [{"name": "main", "command": ["sleep", "7654"]}]}));
    case.until_ready("ill");
    let image = format!("--image={}", image("busybox"));
    let _ =
        case.say(&["debug", "ill", &image, "--container=doctor", "--target=main", "--", "sh", "-c", "ps; sleep 1000"]);
    let pod = case.until_pod("ill", "debugged", |pod| !container(pod, "doctor")["state"]["running"].is_null());
    assert_eq!(container(&pod, "main")["restartCount"], 0);
    until("the target is seen", || case.log("ill", "doctor").contains("sleep 7654").then_some(()));
    assert!(case.say(&["describe", "pod", "ill"]).contains("Ephemeral Containers:"));
}

/// delete waits for the end, by name, by label, forced, and with a time of its own.
pub fn delete(case: &Case<'_>) {
    for name in ["a", "b", "c"] {
        case.apply(&pod(name));
    }
    for name in ["a", "b", "c"] {
        case.until_ready(name);
    }
    let said = case.say(&["delete", "pod", "a", "--grace-period=1"]);
    assert!(said.starts_with("pod \"a\" deleted"), "{said}");
    assert!(case.refused(&["get", "pod", "a"]).contains("not found"));
    assert!(case.say(&["delete", "pods", "-l", "app=b"]).contains("pod \"b\" deleted"));
    let output = case.kubectl(&["delete", "pod", "c", "--force", "--grace-period=0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("pod \"c\" force deleted"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Immediate deletion does not wait"));
    assert!(case.refused(&["delete", "pod", "c"]).contains("not found"));
}

/// patch in its three ways, edit, label, annotate; a change of what may not change is refused.
pub fn change(case: &Case<'_>) {
    case.apply(&pod("p"));
    case.until_ready("p");
    assert_eq!(case.say(&["label", "pod", "p", "tier=one"]), "pod/p labeled");
    assert!(case.refused(&["label", "pod", "p", "tier=two"]).contains("already has a value"));
    assert_eq!(case.say(&["label", "pod", "p", "tier-"]), "pod/p unlabeled");
    assert_eq!(case.say(&["annotate", "pod", "p", "note=some words"]), "pod/p annotated");
    let side = format!(r#"{{"spec":{{"containers":[{{"name":"side","image":"{}"}}]}}}}"#, image("nonroot"));
    assert_eq!(case.say(&["patch", "pod", "p", "-p", &side]), "pod/p patched");
    case.until_pod("p", "its side runs the new image", |pod| {
        container(pod, "side")["image"].as_str().is_some_and(|name| name.contains("nonroot"))
            && container(pod, "side")["restartCount"] == 1
            && condition(pod, "Ready") == "True"
    });
    assert_eq!(container(&case.pod("p"), "main")["restartCount"], 0, "the neighbour is left alone");
    let json = r#"[{"op":"add","path":"/metadata/labels/by","value":"json"}]"#;
    assert_eq!(case.say(&["patch", "pod", "p", "--type=json", "-p", json]), "pod/p patched");
    let merge = r#"{"metadata":{"labels":{"by":null}}}"#;
    assert_eq!(case.say(&["patch", "pod", "p", "--type=merge", "-p", merge]), "pod/p patched");
    assert_eq!(case.say(&["get", "pod", "p", "-o", "jsonpath={.metadata.labels}"]), r#"{"app":"p"}"#);
    let refused = case.refused(&["patch", "pod", "p", "-p", r#"{"spec":{"hostNetwork":true}}"#]);
    assert!(refused.contains("pod updates may not change fields"), "{refused}");
    let editor = case.cluster.world.folder().join(format!("{}-editor", case.namespace));
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/some words/other words/' \"$1\"\n").unwrap();
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut edit = case.kubectl(&["edit", "pod", "p"]);
    assert_eq!(read(edit.env("EDITOR", &editor)), "pod/p edited");
    assert_eq!(case.say(&["get", "pod", "p", "-o", "jsonpath={.metadata.annotations.note}"]), "other words");
}

/// explain, wait, auth can-i, api-resources, version: what needs the API's own description.
pub fn explain_wait_and_rights(case: &Case<'_>) {
    let text = case.say(&["explain", "pod.spec.containers.livenessProbe"]);
    assert!(text.contains("FIELD: livenessProbe <Probe>") && text.contains("httpGet"), "{text}");
    case.apply(&pod("w"));
    assert_eq!(case.say(&["wait", "--for=condition=Ready", "pod/w", "--timeout=60s"]), "pod/w condition met");
    assert_eq!(case.say(&["wait", "--for=jsonpath={.status.phase}=Running", "pod/w"]), "pod/w condition met");
    let _ = case.say(&["delete", "pod", "w", "--wait=false"]);
    let _ = case.say(&["wait", "--for=delete", "pod/w", "--timeout=30s"]);
    assert_eq!(case.say(&["auth", "can-i", "delete", "nodes"]), "yes");
    let account = format!("--as=system:serviceaccount:{}:default", case.namespace);
    let denied = case.kubectl(&["auth", "can-i", "get", "secrets", &account]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");
    assert!(case.say(&["api-resources"]).contains("persistentvolumeclaims"));
    assert!(case.say(&["version"]).contains("Server Version: v1.36"));
}
