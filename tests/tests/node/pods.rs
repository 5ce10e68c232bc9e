//! The law of the pod, on a running node.

use orlop_tests::world::{read, refuse, run, until};
use serde_json::{Value, json};

use crate::backend::{NODE, Node};

fn status<'a>(pod: &'a Value, kind: &str, name: &str) -> &'a Value {
    let all = pod["status"][kind].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

fn app<'a>(pod: &'a Value, name: &str) -> &'a Value {
    status(pod, "containerStatuses", name)
}

pub fn restarts(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  containers: [{name: c, image: 'localhost/test:1', command: [sh, -c, 'exit 4']}]
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'localhost/test:1', command: [sh, -c, 'exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: OnFailure
  containers: [{name: c, image: 'localhost/test:1', command: [sh, -c, 'echo last words > /dev/termination-log']}]
",
    );
    let pod = node.wait_pod("crashes", "waits in back-off", |pod| {
        app(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(app(&pod, "c")["lastState"]["terminated"]["exitCode"], 4);
    node.wait_event("BackOff", "Back-off restarting failed container");
    let pod = node.wait_pod("never", "has failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(app(&pod, "c")["state"]["terminated"]["exitCode"], 3);
    assert_eq!(app(&pod, "c")["restartCount"], 0);
    let pod = node.wait_pod("done", "has succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(app(&pod, "c")["state"]["terminated"]["message"], "last words\n");
    assert_eq!(app(&pod, "c")["state"]["terminated"]["reason"], "Completed");
    node.kubectl("delete pod crashes never done --grace-period=1");
}

pub fn probes(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: probes}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: localhost/test:1
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
  - name: exec
    image: localhost/test:1
    command: [sleep, '600']
    readinessProbe: {exec: {command: [ls, /flag/ready]}, periodSeconds: 1}
    volumeMounts: [{name: flag, mountPath: /flag}]
  - name: dies
    image: localhost/test:1
    command: [sleep, '600']
    livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1}
    terminationMessagePolicy: File
  volumes: [{name: flag, emptyDir: {}}]
",
    );
    let pod = node.wait_pod("probes", "http is ready", |pod| app(pod, "http")["ready"] == true);
    assert_eq!(app(&pod, "exec")["ready"], false);
    node.wait_event("Unhealthy", "Readiness probe failed");
    run(node.world.kubectl().args(["exec", "probes", "-c", "exec", "--", "sh", "-c", "echo > /flag/ready"]));
    node.wait_pod("probes", "exec is ready", |pod| app(pod, "exec")["ready"] == true);
    node.wait_pod("probes", "the unhealthy one was restarted", |pod| {
        app(pod, "dies")["restartCount"].as_i64().unwrap_or_default() > 0
    });
    node.wait_event("Killing", "failed liveness probe");
    let pod = node.pod("probes");
    assert_eq!(app(&pod, "http")["restartCount"], 0);
    node.kubectl("delete pod probes --grace-period=1");
}

pub fn order(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - {name: first, image: 'localhost/test:1', command: [sh, -c, 'echo first >> /log/x'], volumeMounts: [{name: l, mountPath: /log}]}
  - name: side
    image: localhost/test:1
    restartPolicy: Always
    command: [sh, -c, 'echo side >> /log/x; trap exit TERM; while sleep 0.1; do :; done']
    startupProbe: {exec: {command: [ls, /log/x]}, periodSeconds: 1}
    volumeMounts: [{name: l, mountPath: /log}]
  - {name: second, image: 'localhost/test:1', command: [sh, -c, 'echo second >> /log/x'], volumeMounts: [{name: l, mountPath: /log}]}
  containers:
  - {name: main, image: 'localhost/test:1', command: [sh, -c, 'echo main >> /log/x; sleep 600'], volumeMounts: [{name: l, mountPath: /log}]}
  volumes: [{name: l, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stuck}
spec:
  restartPolicy: Never
  initContainers: [{name: i, image: 'localhost/test:1', command: ['false']}]
  containers: [{name: main, image: 'localhost/test:1'}]
",
    );
    node.wait_ready("pod/order");
    let lines = until("main has written", || {
        let text = node.shell("order", "cat /log/x");
        text.contains("main").then_some(text)
    });
    assert_eq!(lines.lines().collect::<Vec<_>>(), ["first", "side", "second", "main"]);
    let pod = node.pod("order");
    assert!(status(&pod, "initContainerStatuses", "side")["state"]["running"].is_object());
    let pod = node.wait_pod("stuck", "has failed", |pod| pod["status"]["phase"] == "Failed");
    assert!(app(&pod, "main")["state"]["waiting"].is_object(), "{}", pod["status"]);
    node.kubectl("delete pod order stuck --grace-period=2");
}

pub fn hooks(node: &Node) {
    let folder = node.world.folder().join("hooks");
    std::fs::create_dir_all(&folder).unwrap();
    node.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: hooks}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: c
    image: localhost/test:1
    command: [sh, -c, 'trap exit TERM; while sleep 0.1; do :; done']
    lifecycle:
      postStart: {{exec: {{command: [sh, -c, 'echo started > /out/start']}}}}
      preStop: {{exec: {{command: [sh, -c, 'echo stopped > /out/stop']}}}}
    volumeMounts: [{{name: out, mountPath: /out}}]
  volumes: [{{name: out, hostPath: {{path: {}, type: Directory}}}}]
",
        folder.display()
    ));
    node.wait_ready("pod/hooks");
    assert_eq!(std::fs::read_to_string(folder.join("start")).unwrap(), "started\n");
    node.kubectl("delete pod hooks");
    assert_eq!(std::fs::read_to_string(folder.join("stop")).unwrap(), "stopped\n");
}

pub fn environment(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: blue, SIZE: '3'}
---
apiVersion: v1
kind: Secret
metadata: {name: secrets}
stringData: {word: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: environment, labels: {tier: front}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: localhost/test:1
    command: [sleep, '600']
    resources: {limits: {memory: 32Mi, cpu: 500m}}
    envFrom: [{configMapRef: {name: settings}, prefix: P_}]
    env:
    - {name: WORD, valueFrom: {secretKeyRef: {name: secrets, key: word}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: absent, key: x, optional: true}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['tier']\"}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: JOINED, value: '$(WORD)-$(P_COLOUR)-$$(x)'}
",
    );
    node.wait_ready("pod/environment");
    let line = "echo $P_COLOUR $P_SIZE $WORD [$NONE] $LABEL $MEMORY $JOINED $KUBERNETES_SERVICE_HOST; echo $IP";
    let seen = node.shell("environment", line);
    let pod = node.pod("environment");
    let host = read(node.world.kubectl().args(["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]));
    let expected =
        format!("blue 3 hush [] front 32 hush-blue-$(x) {host}\n{}", pod["status"]["podIP"].as_str().unwrap());
    assert_eq!(seen, expected);
    node.kubectl("delete pod environment --grace-period=1");
    node.kubectl("delete configmap settings");
    node.kubectl("delete secret secrets");
}

pub fn names(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: named}
spec:
  terminationGracePeriodSeconds: 1
  hostname: other
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [example.org], options: [{name: ndots, value: '2'}]}
  hostAliases: [{ip: 192.0.2.1, hostnames: [far, away]}]
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600']}]
",
    );
    node.wait_ready("pod/named");
    assert_eq!(node.shell("named", "hostname"), "other");
    let hosts = node.shell("named", "cat /etc/hosts");
    assert!(hosts.contains("192.0.2.1\tfar\taway") && hosts.contains("other"), "{hosts}");
    let resolver = node.shell("named", "cat /etc/resolv.conf");
    for line in ["search example.org", "nameserver 192.0.2.53", "options ndots:2"] {
        assert!(resolver.lines().any(|there| there == line), "{resolver}");
    }
    node.kubectl("delete pod named --grace-period=1");
}

pub fn host_port(node: &Node) {
    let pod = |name: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: c, image: 'localhost/test:1', ports: [{{containerPort: 8080, hostPort: 18181}}]}}]
"
        )
    };
    node.apply(&pod("port"));
    node.wait_ready("pod/port");
    let page =
        || node.world.command("curl").args(["-s", "--max-time", "5", "http://127.0.0.1:18181/"]).output().unwrap();
    until("the port leads to the pod", || String::from_utf8_lossy(&page().stdout).contains("Hello").then_some(()));
    // The port is in use: the second pod is not run on this node.
    node.apply(&pod("port-two"));
    node.wait_pod("port-two", "is not run", |pod| {
        let waits = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        pod["status"]["phase"] == "Failed"
            || waits.iter().any(|condition| condition["type"] == "PodScheduled" && condition["status"] == "False")
    });
    node.kubectl("delete pod port port-two --grace-period=1");
    until("the port is closed", || (!page().status.success()).then_some(()));
}

pub fn host_network(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: machine}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  containers: [{name: c, image: 'localhost/test:1', env: [{name: PORT, value: '18282'}]}]
",
    );
    node.wait_ready("pod/machine");
    let pod = node.pod("machine");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    let page =
        || node.world.command("curl").args(["-s", "--max-time", "5", "http://127.0.0.1:18282/"]).output().unwrap();
    until("it listens on the machine", || String::from_utf8_lossy(&page().stdout).contains("Hello").then_some(()));
    node.kubectl("delete pod machine --grace-period=1");
}

pub fn limits(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: localhost/test:1
    command: [sh, -c, 'x=a; while :; do x=$x$x; done']
    resources: {limits: {memory: 16Mi, cpu: 500m}}
",
    );
    let pod = node.wait_pod("hungry", "has failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(app(&pod, "c")["state"]["terminated"]["reason"], "OOMKilled", "{}", pod["status"]);
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    node.kubectl("delete pod hungry --grace-period=1");
}

pub fn security(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600']}]
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234, runAsGroup: 2345, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: c
    image: localhost/test:1
    command: [sleep, '600']
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Pod
metadata: {name: root-refused}
spec:
  securityContext: {runAsNonRoot: true}
  containers: [{name: c, image: 'localhost/test:1'}]
",
    );
    node.wait_ready("pod/plain");
    node.wait_ready("pod/strict");
    let of = |pod: &str, field: &str| {
        let text = node.shell(pod, "cat /proc/self/status");
        text.lines().find_map(|line| line.strip_prefix(field).map(|value| value.trim().to_string())).unwrap()
    };
    assert_eq!(of("plain", "CapEff:"), "00000000a80425fb");
    assert_eq!(of("strict", "CapEff:"), "0000000000000000");
    assert_eq!((of("strict", "Seccomp:"), of("strict", "NoNewPrivs:")), ("2".into(), "1".into()));
    assert!(node.shell("strict", "id").contains("uid=1234 gid=2345"));
    assert!(
        !node
            .world
            .kubectl()
            .args(["exec", "strict", "--", "sh", "-c", "echo > /x"])
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(
        refuse(node.world.kubectl().args(["exec", "plain", "--", "sh", "-c", "echo 1 > /proc/sys/kernel/panic"]))
            .contains("Read-only")
    );
    node.wait_pod("root-refused", "is not started", |pod| {
        app(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    node.kubectl("delete pod plain strict root-refused --grace-period=1");
}

pub fn static_pod(node: &Node) {
    let file = node.world.root.join("manifests/static.yaml");
    let manifest = "apiVersion: v1
kind: Pod
metadata: {name: fixed, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600']}]
";
    std::fs::write(&file, manifest).unwrap();
    let name = format!("fixed-{NODE}");
    until("its mirror is there", || {
        node.world.kubectl().args(["get", "pod", &name]).output().unwrap().status.success().then_some(())
    });
    node.wait_ready(&format!("pod/{name}"));
    node.kubectl(&format!("delete pod {name} --force --grace-period=0"));
    until("the mirror is made again", || {
        node.world.kubectl().args(["get", "pod", &name]).output().unwrap().status.success().then_some(())
    });
    std::fs::remove_file(&file).unwrap();
    until("it goes with its file", || {
        (!node.world.kubectl().args(["get", "pod", &name]).output().unwrap().status.success()).then_some(())
    });
}

pub fn reaches_api(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600']}]
",
    );
    node.wait_ready("pod/caller");
    let token = node.shell("caller", "cat /var/run/secrets/kubernetes.io/serviceaccount/token");
    assert_eq!(node.shell("caller", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"), "default");
    let url = node.shell("caller", "echo https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT");
    let authority = node.world.folder().join("pod-ca.crt");
    std::fs::write(&authority, node.shell("caller", "cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt"))
        .unwrap();
    // curl in the pod's network namespace: the image has no TLS of its own.
    let sandbox = read(node.world.crictl().args(["pods", "--name", "caller", "-q"]));
    let inspected: Value = serde_json::from_str(&read(node.world.crictl().args(["inspectp", &sandbox]))).unwrap();
    let netns = inspected["info"]["runtimeSpec"]["linux"]["namespaces"][0]["path"].as_str().unwrap().to_string();
    let mut curl = node.world.command("nsenter");
    curl.arg(format!("--net={netns}")).args(["curl", "-s", "--max-time", "10", "--cacert"]).arg(&authority);
    let answer = read(curl.args(["-H", &format!("Authorization: Bearer {token}"), &format!("{url}/version")]));
    assert!(answer.contains("gitVersion"), "{answer}");
    node.kubectl("delete pod caller --grace-period=1");
}

pub fn wrong_images(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec: {containers: [{name: c, image: '127.0.0.1:9/nothing:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bad-name}
spec: {containers: [{name: c, image: 'UPPER CASE'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: not-here}
spec: {containers: [{name: c, image: 'localhost/absent:1', imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-program}
spec: {restartPolicy: Never, containers: [{name: c, image: 'localhost/test:1', command: [/not/there]}]}
",
    );
    node.wait_pod("no-image", "waits", |pod| {
        let reason = &app(pod, "c")["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    });
    node.wait_event("Failed", "127.0.0.1:9/nothing:1");
    node.wait_pod("bad-name", "waits", |pod| app(pod, "c")["state"]["waiting"]["reason"] == "InvalidImageName");
    node.wait_pod("not-here", "waits", |pod| app(pod, "c")["state"]["waiting"]["reason"] == "ErrImageNeverPull");
    let pod = node.wait_pod("no-program", "has failed", |pod| pod["status"]["phase"] == "Failed");
    let ended = &app(&pod, "c")["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("StartError"), &json!(128)), "{ended}");
    assert!(ended["message"].as_str().unwrap().contains("/not/there"), "{ended}");
    node.kubectl("delete pod no-image bad-name not-here no-program --grace-period=1");
}

pub fn wrong_manifests(node: &Node) {
    let file = node.world.folder().join("wrong.yaml");
    let refused = |manifest: &str| {
        std::fs::write(&file, manifest).unwrap();
        refuse(node.world.kubectl().args(["apply", "-f"]).arg(&file))
    };
    for (spec, field) in [
        ("{containers: [{name: c, image: x, imagee: y}]}", "imagee"),
        ("{containers: [{name: C, image: x}]}", "spec.containers[0].name"),
        ("{containers: [{name: c, image: x, volumeMounts: [{name: absent, mountPath: /x}]}]}", "volumeMounts[0].name"),
        ("{restartPolicy: Perhaps, containers: [{name: c, image: x}]}", "restartPolicy"),
    ] {
        let said = refused(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: wrong}}\nspec: {spec}\n"));
        assert!(said.contains(field), "{spec}: {said}");
    }
    run(node.world.kubectl().args(["get", "pods"]));
}
