//! Volumes of every kind.

use orlop_tests::world::{read, run, until};

use crate::backend::Node;

pub fn kinds(node: &Node) {
    let folder = node.world.folder().join("shared");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("there"), "machine").unwrap();
    node.apply(&format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: kinds}}
data: {{one: '1', two: '2'}}
binaryData: {{raw: AAEC}}
---
apiVersion: v1
kind: Secret
metadata: {{name: kinds}}
stringData: {{word: hush}}
---
apiVersion: v1
kind: Pod
metadata: {{name: kinds, labels: {{a: b}}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 3000}}
  containers:
  - name: c
    image: localhost/test:1
    command: [sleep, '600']
    volumeMounts:
    - {{name: disk, mountPath: /disk}}
    - {{name: memory, mountPath: /memory}}
    - {{name: host, mountPath: /host, readOnly: true}}
    - {{name: map, mountPath: /map}}
    - {{name: map, mountPath: /single, subPath: two}}
    - {{name: secret, mountPath: /secret}}
    - {{name: facts, mountPath: /facts}}
    - {{name: all, mountPath: /all}}
  - {{name: d, image: 'localhost/test:1', command: [sleep, '600'], volumeMounts: [{{name: disk, mountPath: /disk}}]}}
  volumes:
  - {{name: disk, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 2Mi}}}}
  - {{name: host, hostPath: {{path: {}, type: Directory}}}}
  - {{name: map, configMap: {{name: kinds, items: [{{key: one, path: deep/one}}, {{key: two, path: two}}, {{key: raw, path: raw}}]}}}}
  - {{name: secret, secret: {{secretName: kinds, defaultMode: 256}}}}
  - {{name: facts, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
  - name: all
    projected:
      sources:
      - configMap: {{name: kinds, items: [{{key: one, path: from-map}}]}}
      - secret: {{name: kinds}}
      - downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}
      - serviceAccountToken: {{path: token, audience: elsewhere, expirationSeconds: 600}}
",
        folder.display()
    ));
    node.wait_ready("pod/kinds");
    assert_eq!(node.shell("kinds", "cat /map/deep/one /single /secret/word /host/there"), "12hushmachine");
    assert_eq!(node.shell("kinds", "cat /facts/labels"), "a=\"b\"");
    assert_eq!(node.shell("kinds", "cat /all/from-map /all/word /all/name"), "1hushkinds");
    assert_eq!(node.shell("kinds", "cat /all/token").split('.').count(), 3);
    assert_eq!(node.shell("kinds", "cat /map/raw | { read -r x; echo ok; } || echo ok"), "ok");
    assert!(node.shell("kinds", "cat /proc/mounts").lines().any(|line| line.contains(" /memory tmpfs")));
    assert!(node.shell("kinds", "ls -ln /secret/..data/word").starts_with("-r--r-----"));
    node.shell("kinds", "echo both > /disk/x; ls -ldn /disk");
    let other = read(node.world.kubectl().args(["exec", "kinds", "-c", "d", "--", "cat", "/disk/x"]));
    assert_eq!(other, "both");
    assert!(node.shell("kinds", "ls -ldn /disk").contains(" 3000 "));
    node.kubectl("delete pod kinds --grace-period=1");
    until("its volumes are gone", || {
        let pods = std::fs::read_dir(node.world.root.join("kubelet/pods")).unwrap();
        (pods.count() == 0).then_some(())
    });
    node.kubectl("delete configmap,secret kinds");
}

pub fn changes(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: ConfigMap
metadata: {name: living}
data: {word: before}
---
apiVersion: v1
kind: Pod
metadata: {name: living}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600'], volumeMounts: [{name: m, mountPath: /m}]}]
  volumes: [{name: m, configMap: {name: living}}]
",
    );
    node.wait_ready("pod/living");
    assert_eq!(node.shell("living", "cat /m/word"), "before");
    run(node.world.kubectl().args(["patch", "configmap", "living", "-p", r#"{"data":{"word":"after","new":"x"}}"#]));
    until("the pod sees it", || (node.shell("living", "cat /m/word") == "after").then_some(()));
    assert_eq!(node.shell("living", "cat /m/new"), "x");
    node.kubectl("delete pod living --grace-period=1");
    node.kubectl("delete configmap living");
}

pub fn wrong(node: &Node) {
    node.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600'], volumeMounts: [{name: m, mountPath: /m}]}]
  volumes: [{name: m, configMap: {name: later}}]
---
apiVersion: v1
kind: Pod
metadata: {name: no-folder}
spec:
  containers: [{name: c, image: 'localhost/test:1', volumeMounts: [{name: h, mountPath: /h}]}]
  volumes: [{name: h, hostPath: {path: /does/not/exist, type: Directory}}]
",
    );
    node.wait_event("FailedMount", "later");
    node.wait_event("FailedMount", "hostPath type check failed");
    node.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later}\ndata: {word: late}\n");
    node.wait_ready("pod/waits");
    node.kubectl("delete pod waits no-folder --grace-period=1");
    node.kubectl("delete configmap later");
}

pub fn claims(node: &Node) {
    let pod = "apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: 'localhost/test:1', command: [sleep, '600'], volumeMounts: [{name: d, mountPath: /d}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: kept}}]
";
    let claim = "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}
---
";
    node.apply(&format!("{claim}{pod}"));
    node.wait_ready("pod/keeper");
    node.shell("keeper", "echo stays > /d/x");
    node.kubectl("delete pod keeper --grace-period=1");
    node.apply(pod);
    node.wait_ready("pod/keeper");
    assert_eq!(node.shell("keeper", "cat /d/x"), "stays");
    assert!(node.kubectl("get pvc kept").contains("Bound"));
    node.kubectl("delete pod keeper --grace-period=1");
    node.kubectl("delete pvc kept");
    until("the volume goes with its claim", || {
        read(node.world.kubectl().args(["get", "pv", "-o", "name"])).is_empty().then_some(())
    });
}
