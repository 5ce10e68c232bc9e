//! Looking: get, describe, explain, wait, events, auth, api-resources.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::shell::row;
use crate::{POD, RUNNING, shell};

#[tokio::test(flavor = "multi_thread")]
async fn get_prints_tables() {
    let shell = shell().await;
    shell.apply(POD).await;
    shell.ok(&["wait", "pod/web", "--for=jsonpath={.spec.nodeName}=n1", "--timeout=10s"]).await;
    let table = shell.ok(&["get", "pods"]).await;
    assert!(table.starts_with("NAME   READY   STATUS    RESTARTS   AGE\n"), "{table}");
    assert_eq!(row(&table, "web")[1..4], ["0/2", "Pending", "0"]);
    shell.ok(&["patch", "pod", "web", "--subresource=status", "-p", RUNNING]).await;
    let table = shell.ok(&["get", "pods", "-o", "wide", "--show-labels"]).await;
    assert!(table.contains("NODE   NOMINATED NODE   READINESS GATES   LABELS"), "{table}");
    let words = row(&table, "web");
    assert_eq!(words[1..4], ["1/2", "CrashLoopBackOff", "7"], "{table}");
    assert!(words.contains(&"10.1.0.5") && words.contains(&"n1") && words.contains(&"app=web"), "{table}");
    let nodes = shell.ok(&["get", "nodes", "-o", "wide"]).await;
    assert_eq!(row(&nodes, "n1")[1..3], ["Ready", "<none>"]);
    assert!(nodes.contains("6.1 (amd64)") && nodes.contains("10.0.0.9"), "{nodes}");
    let services = shell.ok(&["get", "svc", "-A"]).await;
    assert!(services.contains("ClusterIP") && services.contains("/TCP"), "{services}");
    let names = shell.ok(&["get", "pods,nodes", "-o", "name"]).await;
    assert_eq!(names, "pod/web\nnode/n1\n");
    let yaml = shell.ok(&["get", "pod", "web", "-o", "yaml"]).await;
    assert!(yaml.contains("qosClass: Burstable") && yaml.contains("phase: Running"), "{yaml}");
    assert_eq!(shell.run(&["get", "pods", "-l", "app=none"]).await.err, "No resources found in default namespace.\n");
    assert!(shell.fails(&["get", "pod", "none"]).await.contains("pods \"none\" not found"));
    assert!(shell.fails(&["get", "nones"]).await.contains("the server doesn't have a resource type \"nones\""));
    for kind in [
        "cm",
        "secrets",
        "sa",
        "ev",
        "leases",
        "pv",
        "pvc",
        "sc",
        "csinodes",
        "csidrivers",
        "runtimeclasses",
        "pc",
        "ns",
        "endpointslices",
    ] {
        let run = shell.run(&["get", kind, "-A", "-o", "wide"]).await;
        assert_eq!(run.code, 0, "{kind}: {run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_follows() {
    let shell = shell().await;
    let mut command = shell.command(&["get", "pods", "-w", "--no-headers"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    shell.apply(POD).await;
    let next = async |lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>, wanted: &str| {
        loop {
            let line = tokio::time::timeout(std::time::Duration::from_secs(10), lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no line with {wanted}")).unwrap().expect("the stream goes on");
            if line.contains(wanted) {
                return line;
            }
        }
    };
    next(&mut lines, "Pending").await;
    shell.ok(&["patch", "pod", "web", "--subresource=status", "-p", RUNNING]).await;
    next(&mut lines, "CrashLoopBackOff").await;
    shell.ok(&["delete", "pod", "web", "--wait=false"]).await;
    next(&mut lines, "Terminating").await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_and_events() {
    let shell = shell().await;
    shell.apply(POD).await;
    shell.ok(&["wait", "pod/web", "--for=jsonpath={.spec.nodeName}=n1", "--timeout=10s"]).await;
    shell.ok(&["wait", "pod/web", "--for=condition=PodScheduled", "--timeout=10s"]).await;
    shell.ok(&["patch", "pod", "web", "--subresource=status", "-p", RUNNING]).await;
    shell.ok(&["wait", "pod/web", "--for=condition=Ready", "--timeout=10s"]).await;
    assert!(
        shell.fails(&["wait", "pod/web", "--for=condition=Ready=false", "--timeout=300ms"]).await.contains("timed out")
    );
    let table = loop {
        let table = shell.ok(&["events", "--for", "pod/web"]).await;
        if table.contains("Scheduled") {
            break table;
        }
    };
    assert!(table.contains("Successfully assigned default/web to n1"), "{table}");
    let text = shell.ok(&["describe", "pod", "web"]).await;
    for part in [
        "Node:             n1/10.0.0.9",
        "CrashLoopBackOff",
        "QoS Class:",
        "Scheduled",
        "kube-api-access-",
        "Restart Count:  5",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let text = shell.ok(&["describe", "node", "n1"]).await;
    for part in ["Allocated resources:", "default                     web", "Container Runtime Version:  orlop://0.1"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let text = shell.ok(&["describe", "service", "kubernetes"]).await;
    assert!(text.contains("Endpoints:") && text.contains("ClusterIP"), "{text}");
    shell.ok(&["describe", "ns,sa,cm,pc", "-A"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_and_discovery() {
    let shell = shell().await;
    let text = shell.ok(&["explain", "pod.spec.containers"]).await;
    assert!(text.contains("FIELD: containers <[]Container>") && text.contains("livenessProbe\t<Probe>"), "{text}");
    let text = shell.ok(&["explain", "pods", "--recursive"]).await;
    assert!(text.contains("terminationGracePeriodSeconds\t<integer>") && text.lines().count() > 800, "{text}");
    let text = shell.ok(&["explain", "pod.spec", "--output=plaintext-openapiv2"]).await;
    assert!(text.contains("RESOURCE: spec <Object>") && text.contains("nodeName\t<string>"), "{text}");
    for kind in [
        "configmaps.data",
        "storageclass.provisioner",
        "lease.spec.holderIdentity",
        "endpointslices.endpoints.addresses",
    ] {
        let text = shell.ok(&["explain", kind]).await;
        assert!(text.contains("DESCRIPTION:"), "{text}");
    }
    let text = shell.ok(&["explain", "events", "--api-version=events.k8s.io/v1"]).await;
    assert!(text.contains("GROUP:      events.k8s.io") && text.contains("regarding\t<ObjectReference>"), "{text}");
    assert!(shell.fails(&["explain", "pod.spec.none"]).await.contains("field \"none\" does not exist"));
    let text = shell.ok(&["api-resources", "-o", "wide"]).await;
    assert_eq!(row(&text, "pods")[..5], ["pods", "po", "v1", "true", "Pod"]);
    assert_eq!(row(&text, "storageclasses")[2], "storage.k8s.io/v1");
    assert_eq!(
        shell.ok(&["api-resources", "--api-group=node.k8s.io", "-o", "name"]).await,
        "runtimeclasses.node.k8s.io\n"
    );
    let text = shell.ok(&["api-versions"]).await;
    assert!(text.lines().any(|line| line == "coordination.k8s.io/v1"), "{text}");
    assert!(shell.ok(&["version"]).await.contains("Server Version: v1.36"));
    let text = shell.ok(&["cluster-info"]).await;
    assert!(text.contains("control plane"), "{text}");
    assert_eq!(shell.ok(&["get", "--raw", "/readyz"]).await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_what() {
    let shell = shell().await;
    assert_eq!(shell.ok(&["auth", "can-i", "create", "pods"]).await, "yes\n");
    let run = shell.run(&["auth", "can-i", "delete", "nodes", "--as", "system:serviceaccount:default:default"]).await;
    assert_eq!((run.code, run.out.as_str()), (1, "no\n"));
    let text = shell.ok(&["auth", "can-i", "--list"]).await;
    assert!(text.contains("*.*") && text.contains("selfsubjectreviews.authentication.k8s.io"), "{text}");
    let text = shell.ok(&["auth", "whoami"]).await;
    assert!(text.contains("system:masters"), "{text}");
    let token = shell.ok(&["create", "token", "default", "--duration=15m", "--audience=a"]).await;
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    assert!(shell.fails(&["create", "token", "none"]).await.contains("serviceaccounts \"none\" not found"));
}
