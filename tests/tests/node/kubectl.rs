//! Each verb of an unmodified kubectl.

use std::io::Write;
use std::process::Stdio;

use orlop_tests::place::foreign;
use orlop_tests::world::{Daemon, read, refuse, run, until};

use crate::backend::{NODE, Node};

/// A pod that serves a page.
fn web(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: web
    image: localhost/test:1
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
  - name: second
    image: localhost/test:1
    stdin: true
    command: [cat]
"
    )
}

pub fn looks(node: &Node) {
    node.apply(&web("looks"));
    node.wait_ready("pod/looks");
    assert!(node.kubectl("get pods").contains("2/2"));
    let wide = node.kubectl("get pods -o wide");
    assert!(wide.contains(NODE) && wide.contains("IP"), "{wide}");
    assert!(node.kubectl("get pod looks -o yaml").contains("phase: Running"));
    let story = node.kubectl("describe pod looks");
    assert!(story.contains("Started") && story.contains("localhost/test:1"), "{story}");
    let log = node.world.folder().join("watch.log");
    let mut command = node.world.kubectl();
    command.args(["get", "pods", "-w"]);
    let watch = Daemon::start(command, log);
    until("the watch shows it", || watch.log().contains("looks").then_some(()));
    node.kubectl("label pod looks seen=yes");
    node.kubectl("delete pod looks --grace-period=1");
    until("the watch shows the end", || watch.log().contains("Terminating").then_some(()));
    assert!(node.kubectl("explain pod.spec.containers").contains("<[]Container>"));
    assert!(node.kubectl("events").contains("looks"));
    assert_eq!(node.kubectl("auth can-i create pods"), "yes");
    let account = "--as=system:serviceaccount:default:default";
    let refused = node.world.kubectl().args(["auth", "can-i", "delete", "nodes", account]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&refused.stdout).trim(), "no");
    assert!(node.kubectl("get nodes").contains(NODE));
}

pub fn changes(node: &Node) {
    node.apply(&web("changes"));
    node.wait_ready("pod/changes");
    node.kubectl("label pod changes tier=front");
    node.kubectl("annotate pod changes note=one");
    run(node.world.kubectl().args(["patch", "pod", "changes", "-p", r#"{"metadata":{"labels":{"by":"patch"}}}"#]));
    run(node.world.kubectl().args([
        "patch",
        "pod",
        "changes",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/labels/json","value":"yes"}]"#,
    ]));
    let mut edit = node.world.kubectl();
    run(edit.args(["edit", "pod", "changes"]).env("KUBE_EDITOR", "sed -i s/note:.one/note:\\ two/"));
    let pod = node.pod("changes");
    assert_eq!(pod["metadata"]["labels"]["tier"], "front");
    assert_eq!(pod["metadata"]["labels"]["by"], "patch");
    assert_eq!(pod["metadata"]["labels"]["json"], "yes");
    assert_eq!(pod["metadata"]["annotations"]["note"], "two");
    node.kubectl("wait --for=condition=Ready pod/changes --timeout=20s");
    node.kubectl("delete pod changes --grace-period=1");
}

pub fn logs(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: logs}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: 'localhost/test:1', command: [sh, -c, 'echo from a; i=0; while sleep 0.1; do echo tick $i; i=$((i+1)); done']}
  - {name: b, image: 'localhost/test:1', command: [sh, -c, 'echo run; if [ -e /again/x ]; then sleep 600; fi; echo > /again/x; exit 1'], volumeMounts: [{name: v, mountPath: /again}]}
  volumes: [{name: v, emptyDir: {}}]
",
    );
    node.wait_pod("logs", "b was started again", |pod| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().any(|status| status["restartCount"] == 1 && status["state"]["running"].is_object())
    });
    assert!(node.kubectl("logs logs -c a").contains("from a"));
    assert_eq!(node.kubectl("logs logs -c b --previous"), "run");
    assert_eq!(node.kubectl("logs logs -c a --tail=1").lines().count(), 1);
    assert!(node.kubectl("logs logs --all-containers --prefix").contains("[pod/logs/b] run"));
    let log = node.world.folder().join("follow.log");
    let mut command = node.world.kubectl();
    command.args(["logs", "-f", "logs", "-c", "a"]);
    let follow = Daemon::start(command, log);
    until("it follows", || follow.log().contains("tick 5").then_some(()));
    let seen = follow.log().lines().count();
    until("it goes on", || (follow.log().lines().count() > seen + 3).then_some(()));
    node.kubectl("delete pod logs --grace-period=1");
}

pub fn enters(node: &Node) {
    node.apply(&web("enters"));
    node.wait_ready("pod/enters");
    assert_eq!(node.kubectl("exec enters -c web -- echo inside"), "inside");
    let failed = node.world.kubectl().args(["exec", "enters", "--", "sh", "-c", "exit 9"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(9));
    let line = format!(
        "stty rows 41 cols 87; KUBECONFIG={} {} exec -it enters -- sh -c \"sleep 1; stty size\"",
        node.world.root.join("state/admin.kubeconfig").display(),
        foreign("kubectl").display()
    );
    let seen = read(node.world.command("script").args(["-qec", &line, "/dev/null"]));
    assert!(seen.contains("41 87"), "{seen:?}");
    let mut attach = node.world.kubectl();
    attach.args(["attach", "-i", "enters", "-c", "second"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.spawn().unwrap();
    let mut stdin = attach.stdin.take().unwrap();
    stdin.write_all(b"to and fro\n").unwrap();
    let mut output = std::io::BufReader::new(attach.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "to and fro\n");
    drop(stdin);
    attach.kill().unwrap();
    attach.wait().unwrap();
    let (there, back) = (node.world.folder().join("there"), node.world.folder().join("back"));
    std::fs::write(&there, "carried").unwrap();
    run(node.world.kubectl().arg("cp").arg(&there).args(["enters:/tmp-file", "-c", "web"]));
    run(node.world.kubectl().args(["cp", "enters:/tmp-file"]).arg(&back).args(["-c", "web"]));
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "carried");
    node.kubectl("delete pod enters --grace-period=1");
}

pub fn forwards(node: &Node) {
    node.apply(&web("forwards"));
    node.wait_ready("pod/forwards");
    let mut command = node.world.kubectl();
    command.args(["port-forward", "pod/forwards", "19080:8080"]);
    let forward = Daemon::start(command, node.world.folder().join("forward.log"));
    until("the port is forwarded", || forward.log().contains("Forwarding from").then_some(()));
    for _ in 0..3 {
        let page = read(node.world.command("curl").args(["-s", "--max-time", "10", "http://127.0.0.1:19080/"]));
        assert!(page.contains("Hello from Orlop"), "{page}");
    }
    node.kubectl("delete pod forwards --grace-period=1");
}

pub fn debugs(node: &Node) {
    node.apply(&web("debugs"));
    node.wait_ready("pod/debugs");
    run(node.world.kubectl().args([
        "debug",
        "debugs",
        "--image=localhost/test:1",
        "--container=look",
        "--profile=general",
        "--",
        "sh",
        "-c",
        "echo looked; sleep 600",
    ]));
    node.wait_pod("debugs", "the debug container runs", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    });
    until("it says so", || (node.kubectl("logs debugs -c look") == "looked").then_some(()));
    node.kubectl("delete pod debugs --grace-period=1");
}

pub fn deletes(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: c, image: 'localhost/test:1', command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']}
",
    );
    node.wait_ready("pod/slow");
    let began = std::time::Instant::now();
    node.kubectl("delete pod slow");
    assert!(began.elapsed().as_secs_f64() > 1.5, "it has its grace time");
    assert!(refuse(node.world.kubectl().args(["get", "pod", "slow"])).contains("not found"));
    node.apply(&web("forced"));
    node.wait_ready("pod/forced");
    node.kubectl("delete pod forced --force --grace-period=0");
    assert!(refuse(node.world.kubectl().args(["get", "pod", "forced"])).contains("not found"));
    until("its containers go too", || (!read(node.world.crictl().args(["pods"])).contains("forced")).then_some(()));
}
