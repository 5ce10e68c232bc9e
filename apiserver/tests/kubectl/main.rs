//! The unmodified `kubectl` against the embedded server: every verb that needs no node.

#[path = "../support/real.rs"]
mod real;
#[path = "../support/server.rs"]
mod server;

mod change;
mod look;
mod shell;

use shell::Shell;

/// A server with a node that is ready, and kubectl for it.
async fn shell() -> Shell {
    let shell = Shell::start().await;
    shell.apply(NODE).await;
    shell.ok(&["patch", "node", "n1", "--subresource=status", "--type=merge", "-p", NODE_STATUS]).await;
    shell
}

const NODE: &str =
    "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {kubernetes.io/os: linux, kubernetes.io/hostname: n1}}\n";
const NODE_STATUS: &str = r#"{"status":{"capacity":{"cpu":"4","memory":"8Gi","pods":"110","ephemeral-storage":"10Gi"},"allocatable":{"cpu":"4","memory":"8Gi","pods":"110","ephemeral-storage":"10Gi"},"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}],"addresses":[{"type":"InternalIP","address":"10.0.0.9"},{"type":"Hostname","address":"n1"}],"nodeInfo":{"kubeletVersion":"v1.36.3","osImage":"Debian","kernelVersion":"6.1","architecture":"amd64","containerRuntimeVersion":"orlop://0.1"}}}"#;
const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
    - {name: main, image: nginx:1, ports: [{containerPort: 80, name: http}], resources: {limits: {cpu: 100m}}}
    - {name: side, image: busybox:1, env: [{name: A, value: b}]}
  initContainers:
    - {name: first, image: busybox:1}
";
const RUNNING: &str = r#"{"status":{"phase":"Running","podIP":"10.1.0.5","podIPs":[{"ip":"10.1.0.5"}],"hostIP":"10.0.0.9","startTime":"2026-01-01T00:00:00Z","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"},{"type":"Initialized","status":"True"},{"type":"PodScheduled","status":"True"}],"initContainerStatuses":[{"name":"first","image":"busybox:1","imageID":"i","ready":true,"restartCount":0,"state":{"terminated":{"exitCode":0,"reason":"Completed"}}}],"containerStatuses":[{"name":"main","image":"nginx:1","imageID":"i","ready":true,"started":true,"restartCount":2,"lastState":{"terminated":{"exitCode":1,"reason":"Error","finishedAt":"2026-01-01T00:00:00Z"}},"state":{"running":{"startedAt":"2026-01-01T00:00:05Z"}}},{"name":"side","image":"busybox:1","imageID":"i","ready":false,"restartCount":5,"state":{"waiting":{"reason":"CrashLoopBackOff"}}}]}}"#;
