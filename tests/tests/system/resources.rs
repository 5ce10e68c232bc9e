//! What a container may use and may do.

use orlop_tests::case::{Case, container, image};
use serde_json::{Value, json};

/// Limits arrive in the container's cgroups, and the pod's class in its status.
pub fn limits(case: &Case<'_>) {
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                  /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
    let told = case.output_of("capped", spec(json!({"limits": {"cpu": "250m", "memory": "32Mi"}})), script);
    assert_eq!(told, "33554432\n25000\n256");
    assert_eq!(case.pod("capped")["status"]["qosClass"], "Guaranteed");
    let half = json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}});
    let told = case.output_of("half", spec(half), script);
    assert_eq!(told, "67108864\n-1\n102");
    assert_eq!(case.pod("half")["status"]["qosClass"], "Burstable");
    let free = case.output_of("free", spec(json!({})), script);
    assert!(free.ends_with("\n-1\n2"), "{free}");
    case.make_pod("huge", spec(json!({"requests": {"memory": "900Gi"}})));
    let pod = case.until_pod("huge", "refused", |pod| {
        pod["status"]["reason"] == "OutOfmemory" || orlop_tests::case::condition(pod, "PodScheduled") == "False"
    });
    assert_ne!(pod["status"]["phase"], "Running");
}

/// A container that takes more memory than it may is killed, and the status says that it was for that.
pub fn out_of_memory(case: &Case<'_>) {
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "greedy", "command": ["sh", "-c", "tail /dev/zero"], "resources": {"limits": {"memory": "16Mi"}}},
        {"name": "other", "command": ["sh", "-c", "sleep 5"]}]});
    case.make_pod("oom", spec);
    let pod = case.until_ended("oom");
    let ended = &container(&pod, "greedy")["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    assert_eq!(container(&pod, "other")["state"]["terminated"]["exitCode"], 0, "the neighbour lives on");
}

/// What a container has without asking: few capabilities, seccomp, masked files, no device, no way up.
pub fn security_defaults(case: &Case<'_>) {
    let script = "grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'; ls /dev | tr '\\n' ' '; echo; \
                  cat /proc/kcore 2>&1 | head -c 10 | wc -c; echo 1 2>&1 > /proc/sys/kernel/domainname || echo read-only; \
                  mount -t tmpfs none /tmp 2>&1; unshare -U true 2>&1; mknod /tmp/x b 8 0 2>&1; dd if=/tmp/x count=1 2>&1 | head -1; \
                  ls /proc/self/fd | wc -l";
    let told = case.output_of("plain", json!({}), script);
    assert!(told.contains("CapEff:00000000a80425fb") && told.contains("CapBnd:00000000a80425fb"), "{told}");
    assert!(told.contains("Seccomp:2") || told.contains("Seccomp:0"), "{told}");
    assert!(!told.contains("sda") && !told.contains("vda") && told.contains("null"), "{told}");
    assert!(told.contains("read-only") || told.contains("Read-only"), "{told}");
    assert!(told.contains("mount: permission denied") || told.contains("Operation not permitted"), "{told}");
    assert!(told.contains("can't open '/tmp/x': Operation not permitted"), "{told}");
    let strict = json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1234, "runAsGroup": 99,
        "supplementalGroups": [7], "fsGroup": 8},
        "containers": [{"securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
    let script = "grep -E '^(CapBnd|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'; id -u; id -g; id -G; touch /x 2>&1; true";
    let told = case.output_of("strict", strict, script);
    for word in ["CapBnd:0000000000000400", "Seccomp:2", "NoNewPrivs:1", "1234\n99\n", "Read-only file system"] {
        assert!(told.contains(word), "{word}:\n{told}");
    }
    let groups = told.lines().find(|line| line.contains(' ') && line.starts_with("99")).unwrap_or_default().to_string();
    assert!(["7", "8"].iter().all(|group| groups.split(' ').any(|one| one == *group)), "{told}");
    let privileged = json!({"containers": [{"securityContext": {"privileged": true}}]});
    let told = case.output_of(
        "mighty",
        privileged,
        "mount -t tmpfs none /tmp && grep Seccomp: /proc/self/status; ls /dev | wc -l",
    );
    assert!(told.contains("Seccomp:\t0"), "{told}");
}

/// Users by name and number out of the image, and a refusal of root where it is not wanted.
pub fn users(case: &Case<'_>) {
    let with = |name: &str, context: Value| json!({"containers": [{"image": image(name), "securityContext": context}]});
    // The kubelet asks for the image's user by its number alone, so the group is that of the passwd file, or root's.
    assert_eq!(case.output_of("number", with("nonroot", json!({})), "id -u; id -g"), "1000\n0");
    let named = case.output_of("named", with("named", json!({})), "id -un; id -g; id -G");
    assert_eq!(named, "somebody\n1235\n1235 4321");
    let fine = with("nonroot", json!({"runAsNonRoot": true}));
    assert_eq!(case.output_of("fine", fine, "id -u"), "1000");
    for (pod, name, words) in [
        ("root", "busybox", "container has runAsNonRoot and image will run as root"),
        ("unknown", "named", "container has runAsNonRoot and image has non-numeric user (somebody)"),
    ] {
        case.make_pod(pod, with(name, json!({"runAsNonRoot": true})));
        let seen = case.until_pod(pod, "refused", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
        let message = container(&seen, "c")["state"]["waiting"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

/// The kubelet's safe sysctls, and a refusal of the others.
pub fn sysctls(case: &Case<'_>) {
    let spec = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
    assert_eq!(
        case.output_of(
            "safe",
            spec("net.ipv4.ip_unprivileged_port_start"),
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        ),
        "1"
    );
    case.make_pod("unsafe", {
        let mut spec = spec("kernel.msgmax");
        spec["containers"] = json!([{}]);
        spec
    });
    let pod = case.until_ended("unsafe");
    assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("SysctlForbidden")));
}
