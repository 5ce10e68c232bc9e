//! Changing: apply, create, edit, patch, label, annotate, set, diff, replace, delete, cordon.

use std::os::unix::fs::PermissionsExt;

use crate::shell::row;
use crate::{POD, RUNNING, shell};

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: \"1\", b: \"2\"}\n";

#[tokio::test(flavor = "multi_thread")]
async fn apply_merges_three_ways() {
    let shell = shell().await;
    assert_eq!(shell.apply(MAP).await, "configmap/m created\n");
    assert_eq!(shell.apply(MAP).await, "configmap/m unchanged\n");
    shell.ok(&["patch", "cm", "m", "--type=merge", "-p", r#"{"data":{"other":"3"}}"#]).await;
    let changed = MAP.replace(", b: \"2\"", ", c: \"4\"");
    let run = shell.run_with(shell.command(&["diff", "-f", "-"]), &changed).await;
    assert!(run.code == 1 && run.out.contains("-  b: \"2\"") && run.out.contains("+  c: \"4\""), "{run:?}");
    assert_eq!(shell.apply(&changed).await, "configmap/m configured\n");
    assert_eq!(shell.ok(&["get", "cm", "m", "-o", "jsonpath={.data}"]).await, r#"{"a":"1","c":"4","other":"3"}"#);
    let run = shell.run_with(shell.command(&["apply", "--dry-run=server", "-f", "-"]), MAP).await;
    assert_eq!(run.out, "configmap/m configured (server dry run)\n", "{run:?}");
    assert_eq!(shell.apply(POD).await, "pod/web created\n");
    let newer = POD.replace("nginx:1", "nginx:2");
    assert_eq!(shell.apply(&newer).await, "pod/web configured\n");
    assert_eq!(
        shell.ok(&["get", "pod", "web", "-o", "jsonpath={.spec.containers[*].image}"]).await,
        "nginx:2 busybox:1"
    );
    let wrong = POD.replace("name: side, image", "name: side, imag");
    let run = shell.run_with(shell.command(&["apply", "-f", "-"]), &wrong).await;
    assert!(run.code == 1 && run.err.contains("unknown field \"spec.containers[1].imag\""), "{run:?}");
    let run = shell
        .run_with(
            shell.command(&["create", "--dry-run=server", "--validate=warn", "-f", "-"]),
            &wrong.replace("name: web", "name: w"),
        )
        .await;
    assert!(run.err.contains("unknown field \"spec.containers[1].imag\""), "{run:?}");
    let run = shell.run_with(shell.command(&["apply", "-f", "-"]), &POD.replace("nginx:1", "nginx:1, tty: 5")).await;
    assert!(run.code == 1 && run.err.contains("tty"), "{run:?}");
    let run = shell.run_with(shell.command(&["apply", "--server-side", "-f", "-"]), MAP).await;
    assert!(run.code == 1 && run.err.contains("server-side apply is not served"), "{run:?}");
    let run = shell
        .run_with(
            shell.command(&["apply", "--prune", "-l", "none=1", "--prune-allowlist=core/v1/ConfigMap", "-f", "-"]),
            "",
        )
        .await;
    assert!(run.err.contains("no objects passed"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn create_and_replace() {
    let shell = shell().await;
    assert_eq!(shell.ok(&["create", "ns", "extra"]).await, "namespace/extra created\n");
    assert_eq!(shell.ok(&["create", "cm", "c", "--from-literal=k=v", "-n", "extra"]).await, "configmap/c created\n");
    assert_eq!(
        shell.ok(&["create", "secret", "generic", "s", "--from-literal=k=v", "-n", "extra"]).await,
        "secret/s created\n"
    );
    assert_eq!(shell.ok(&["create", "sa", "robot", "-n", "extra"]).await, "serviceaccount/robot created\n");
    assert_eq!(
        shell.ok(&["create", "service", "clusterip", "svc", "--tcp=80:8080", "-n", "extra"]).await,
        "service/svc created\n"
    );
    assert!(shell.fails(&["create", "cm", "c", "-n", "extra"]).await.contains("configmaps \"c\" already exists"));
    assert!(shell.ok(&["create", "cm", "dry", "--dry-run=server", "-o", "yaml"]).await.contains("uid:"));
    assert!(shell.fails(&["get", "cm", "dry"]).await.contains("not found"));
    let run = shell.run(&["run", "one", "--image=busybox", "--restart=Never", "-n", "extra", "--", "sleep", "1"]).await;
    assert_eq!(run.out, "pod/one created\n", "{run:?}");
    let run = shell.run_with(shell.command(&["replace", "-f", "-"]), MAP).await;
    assert!(run.err.contains("configmaps \"m\" not found"), "{run:?}");
    shell.apply(MAP).await;
    let run = shell.run_with(shell.command(&["replace", "-f", "-"]), &MAP.replace("a: \"1\"", "z: \"1\"")).await;
    assert_eq!(run.out, "configmap/m replaced\n", "{run:?}");
    shell.ok(&["expose", "pod", "one", "--port=80", "-n", "extra"]).await;
    let table = shell.ok(&["get", "svc", "-n", "extra"]).await;
    assert_eq!(row(&table, "one")[1], "ClusterIP");
    let unknown = "apiVersion: v1\nkind: Pood\nmetadata: {name: x}\n";
    let run = shell.run_with(shell.command(&["apply", "-f", "-"]), unknown).await;
    assert!(run.err.contains("no matches for kind \"Pood\" in version \"v1\""), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_patch_label_annotate() {
    let shell = shell().await;
    shell.apply(MAP).await;
    let editor = shell.home().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/a: \"1\"/a: \"9\"/' \"$1\"\n").unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = shell.command(&["edit", "cm", "m"]);
    command.env("EDITOR", &editor);
    let run = shell.run_with(command, "").await;
    assert_eq!(run.out, "configmap/m edited\n", "{run:?}");
    assert_eq!(shell.ok(&["get", "cm", "m", "-o", "jsonpath={.data.a}"]).await, "9");
    assert_eq!(shell.ok(&["label", "cm", "m", "x=y"]).await, "configmap/m labeled\n");
    assert!(shell.fails(&["label", "cm", "m", "x=z"]).await.contains("already has a value"));
    shell.ok(&["label", "cm", "m", "x=z", "--overwrite"]).await;
    assert_eq!(shell.ok(&["get", "cm", "-l", "x in (z)", "-o", "name"]).await, "configmap/m\n");
    shell.ok(&["label", "cm", "m", "x-"]).await;
    assert!(shell.fails(&["label", "cm", "m", "a=b c"]).await.contains("invalid label value"));
    assert_eq!(shell.ok(&["annotate", "cm", "m", "note=a b"]).await, "configmap/m annotated\n");
    shell.ok(&["patch", "cm", "m", "--type=json", "-p", r#"[{"op":"remove","path":"/data/b"}]"#]).await;
    shell.apply(POD).await;
    shell.ok(&["patch", "pod", "web", "-p", r#"{"spec":{"containers":[{"name":"side","image":"busybox:2"}]}}"#]).await;
    shell.ok(&["set", "image", "pod/web", "main=nginx:3"]).await;
    assert_eq!(
        shell.ok(&["get", "pod", "web", "-o", "jsonpath={.spec.containers[*].image}"]).await,
        "nginx:3 busybox:2"
    );
    let refused = shell.fails(&["patch", "pod", "web", "-p", r#"{"spec":{"hostname":"h"}}"#]).await;
    assert!(refused.contains("pod updates may not change fields other than"), "{refused}");
    let refused = shell
        .fails(&["patch", "pod", "web", "-p", r#"{"metadata":{"uid":"00000000-0000-0000-0000-000000000000"}}"#])
        .await;
    assert!(refused.contains("field is immutable"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_and_cordon() {
    let shell = shell().await;
    shell.apply(POD).await;
    shell.ok(&["wait", "pod/web", "--for=jsonpath={.spec.nodeName}=n1", "--timeout=10s"]).await;
    shell.ok(&["patch", "pod", "web", "--subresource=status", "-p", RUNNING]).await;
    assert_eq!(shell.ok(&["cordon", "n1"]).await, "node/n1 cordoned\n");
    assert_eq!(row(&shell.ok(&["get", "nodes"]).await, "n1")[1], "Ready,SchedulingDisabled");
    assert_eq!(shell.ok(&["uncordon", "n1"]).await, "node/n1 uncordoned\n");
    assert_eq!(shell.ok(&["taint", "node", "n1", "k=v:NoSchedule"]).await, "node/n1 tainted\n");
    shell.ok(&["taint", "node", "n1", "k-"]).await;
    shell.ok(&["delete", "pod", "web", "--wait=false"]).await;
    assert_eq!(row(&shell.ok(&["get", "pods"]).await, "web")[2], "Terminating");
    let run = shell.run(&["delete", "pod", "web", "--force", "--grace-period=0"]).await;
    assert!(run.code == 0 && run.out.contains("pod \"web\" force deleted"), "{run:?}");
    assert!(shell.fails(&["get", "pod", "web"]).await.contains("not found"));
    shell.ok(&["create", "ns", "gone"]).await;
    shell.ok(&["create", "cm", "c", "-n", "gone"]).await;
    assert_eq!(shell.ok(&["delete", "ns", "gone", "--timeout=20s"]).await, "namespace \"gone\" deleted\n");
    assert!(shell.fails(&["delete", "ns", "gone"]).await.contains("not found"));
    shell.apply(MAP).await;
    assert_eq!(shell.ok(&["delete", "cm", "-l", "none=1"]).await, "No resources found\n");
    shell.ok(&["delete", "cm", "m", "--cascade=orphan"]).await;
    shell.ok(&["wait", "cm/m", "--for=delete", "--timeout=10s"]).await;
    let run = shell.run(&["delete", "cm", "--all"]).await;
    assert_eq!(run.code, 0, "{run:?}");
}
