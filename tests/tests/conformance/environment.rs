//! What containers find in their environment and in their arguments: ConfigMaps, Secrets, fields of the pod, expansions.

use orlop_tests::case::{Case, condition, container, image};
use serde_json::{Value, json};

/// Makes a ConfigMap (or a Secret of the same texts) named `source`.
fn make_source(case: &Case<'_>, kind: &str, texts: Value) {
    let field = if kind == "secrets" { "stringData" } else { "data" };
    case.make(kind, &json!({"metadata": {"name": "source"}, field: texts}));
}

/// What a container with these variables finds.
fn environment(case: &Case<'_>, container: Value) -> Vec<String> {
    environment_of(case, json!({"containers": [container]}))
}

/// What the container of a pod finds. No shell is between: it would drop names that are none to it.
fn environment_of(case: &Case<'_>, mut spec: Value) -> Vec<String> {
    spec["restartPolicy"] = "Never".into();
    spec["containers"][0]["command"] = json!(["env"]);
    case.make_pod("p", spec);
    let pod = case.until_ended("p");
    let log = case.log("p", "");
    assert_eq!(pod["status"]["phase"], "Succeeded", "{log}");
    log.lines().map(str::to_string).collect()
}

fn assert_lines(seen: &[String], lines: &[&str]) {
    for line in lines {
        assert!(seen.iter().any(|one| one == line), "{line} is missing:\n{}", seen.join("\n"));
    }
}

/// References by key and by all keys, with and without prefixes, alike for both kinds of sources.
pub mod sources {
    use super::{Case, Value, assert_lines, environment, json, make_source};

    fn key_reference(kind: &str, key: &str, optional: bool) -> Value {
        let field = if kind == "secrets" { "secretKeyRef" } else { "configMapKeyRef" };
        json!({field: {"name": "source", "key": key, "optional": optional}})
    }

    fn whole_reference(kind: &str, prefix: &str) -> Value {
        let field = if kind == "secrets" { "secretRef" } else { "configMapRef" };
        let mut reference = json!({field: {"name": "source"}});
        if !prefix.is_empty() {
            reference["prefix"] = prefix.into();
        }
        reference
    }

    pub fn by_key(case: &Case<'_>, kind: &str) {
        make_source(case, kind, json!({"data-1": "value-1"}));
        let env = json!([{"name": "TOLD", "valueFrom": key_reference(kind, "data-1", false)},
            {"name": "ABSENT", "valueFrom": key_reference(kind, "none", true)}]);
        let seen = environment(case, json!({"env": env}));
        assert_lines(&seen, &["TOLD=value-1"]);
        assert!(!seen.iter().any(|line| line.starts_with("ABSENT")), "{seen:?}");
    }

    pub fn by_all_keys(case: &Case<'_>, kind: &str) {
        make_source(case, kind, json!({"data_1": "value-1", "data_2": "value-2", "data_3": "value-3"}));
        let seen = environment(case, json!({"envFrom": [whole_reference(kind, ""), whole_reference(kind, "p_")]}));
        let all = ["data_1=value-1", "data_2=value-2", "data_3=value-3", "p_data_1=value-1", "p_data_2=value-2"];
        assert_lines(&seen, &all);
    }

    pub fn with_any_names(case: &Case<'_>, kind: &str) {
        make_source(case, kind, json!({"data-1": "a", "data.2": "b", "3data": "c"}));
        let prefixes = ["", "p-", "1.", "$(x)#"].map(|prefix| whole_reference(kind, prefix));
        let seen = environment(case, json!({"envFrom": prefixes}));
        for prefix in ["", "p-", "1.", "$(x)#"] {
            let lines = ["data-1=a", "data.2=b", "3data=c"].map(|line| format!("{prefix}{line}"));
            assert_lines(&seen, &lines.each_ref().map(String::as_str));
        }
    }

    /// Gives it other data and another label, finds it everywhere by that label, and deletes it by that label.
    pub fn patch_and_delete(case: &Case<'_>, kind: &str, data: &Value) {
        let api = &case.cluster.api;
        let change = json!({"metadata": {"labels": {"stage": "patched"}}, "data": data});
        api.must("PATCH", &case.path(kind, "source"), Some(&change));
        let list = api.get(&format!("/api/v1/{kind}?labelSelector=stage=patched"));
        let own = |item: &&Value| item["metadata"]["namespace"] == case.namespace;
        let found: Vec<&Value> = list["items"].as_array().unwrap().iter().filter(own).collect();
        assert_eq!((found.len(), &found[0]["data"]), (1, data));
        api.must("DELETE", &format!("{}?labelSelector=stage=patched", case.path(kind, "")), None);
    }

    pub fn without_key(case: &Case<'_>, kind: &str) {
        let field = if kind == "secrets" { "stringData" } else { "data" };
        let object = json!({"metadata": {"name": "source"}, field: {"": "value"}});
        let (code, told) = case.cluster.api.send("POST", &case.path(kind, ""), Some(&object)).unwrap();
        assert_eq!((code, &told["reason"]), (422, &json!("Invalid")), "{told}");
        assert!(case.cluster.api.find(&case.path(kind, "source")).is_none());
    }
}

/// ConfigMaps.
pub mod configmaps {
    use orlop_tests::world::until;

    use super::{Case, Value, environment, json, sources};
    use crate::shape::watched;

    const KIND: &str = "configmaps";

    /// One variable of one key.
    pub fn variable(case: &Case<'_>) {
        sources::by_key(case, KIND);
    }

    /// A variable of each key.
    pub fn all_variables(case: &Case<'_>) {
        sources::by_all_keys(case, KIND);
    }

    /// A key without a name is refused.
    pub fn empty_key(case: &Case<'_>) {
        sources::without_key(case, KIND);
    }

    /// Names of variables may hold nearly anything.
    pub fn prefixes(case: &Case<'_>) {
        sources::with_any_names(case, KIND);
    }

    /// It may be changed, and the next pod sees what it is now.
    pub fn update(case: &Case<'_>) {
        super::make_source(case, KIND, json!({"word": "old"}));
        let mut map = case.cluster.api.get(&case.path(KIND, "source"));
        map["data"] = json!({"word": "new"});
        let put = case.cluster.api.must("PUT", &case.path(KIND, "source"), Some(&map));
        assert_eq!(put["data"]["word"], "new");
        assert_ne!(put["metadata"]["resourceVersion"], map["metadata"]["resourceVersion"]);
        let env = json!([{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "source", "key": "word"}}}]);
        assert!(environment(case, json!({"env": env})).contains(&"WORD=new".to_string()));
    }

    /// Made, watched, patched, listed by label everywhere, and deleted by label.
    pub fn life(case: &Case<'_>) {
        let api = &case.cluster.api;
        let map = json!({"metadata": {"name": "source", "labels": {"stage": "made"}}, "data": {"word": "old"}});
        case.make(KIND, &map);
        let from = api.get(&case.path(KIND, "source"))["metadata"]["resourceVersion"].clone();
        sources::patch_and_delete(case, KIND, &json!({"word": "new"}));
        until("it is gone", || api.find(&case.path(KIND, "source")).is_none().then_some(()));
        let events = watched(case, KIND, from.as_str().unwrap());
        let own = |event: &&Value| event["object"]["metadata"]["name"] == "source";
        let kinds: Vec<&str> = events.iter().filter(own).map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["MODIFIED", "DELETED"]);
    }
}

/// Secrets.
pub mod secrets {
    use super::{Case, json, sources};

    const KIND: &str = "secrets";

    /// One variable of one key.
    pub fn variable(case: &Case<'_>) {
        sources::by_key(case, KIND);
    }

    /// A variable of each key.
    pub fn all_variables(case: &Case<'_>) {
        sources::by_all_keys(case, KIND);
    }

    /// A key without a name is refused.
    pub fn empty_key(case: &Case<'_>) {
        sources::without_key(case, KIND);
    }

    /// Names of variables may hold nearly anything.
    pub fn prefixes(case: &Case<'_>) {
        sources::with_any_names(case, KIND);
    }

    /// Made, found everywhere, patched, deleted by label.
    pub fn patch(case: &Case<'_>) {
        case.make(KIND, &json!({"metadata": {"name": "source", "labels": {"stage": "made"}}, "data": {"key": "b2xk"}}));
        sources::patch_and_delete(case, KIND, &json!({"key": "bmV3"}));
        assert!(case.cluster.api.find(&case.path(KIND, "source")).is_none());
    }
}

/// Fields and amounts of the pod itself.
pub mod downward {
    use super::{Case, Value, assert_lines, environment, environment_of, json};

    fn field(name: &str, path: &str) -> Value {
        json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    }

    fn amount(name: &str, resource: &str) -> Value {
        json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}})
    }

    /// A text in the status of the case's pod.
    fn told(case: &Case<'_>, field: &str) -> String {
        case.pod("p")["status"][field].as_str().unwrap_or_else(|| panic!("no {field}")).to_string()
    }

    /// Its name, namespace and address.
    pub fn name_and_address(case: &Case<'_>) {
        let env = [("NAME", "metadata.name"), ("SPACE", "metadata.namespace"), ("IP", "status.podIP")];
        let seen = environment(case, json!({"env": env.map(|(name, path)| field(name, path))}));
        let ip = told(case, "podIP");
        assert_lines(&seen, &["NAME=p", &format!("SPACE={}", case.namespace), &format!("IP={ip}")]);
    }

    /// The node's address.
    pub fn host_ip(case: &Case<'_>) {
        let seen = environment(case, json!({"env": [field("HOST", "status.hostIP")]}));
        assert_lines(&seen, &[&format!("HOST={}", told(case, "hostIP"))]);
    }

    /// All of the node's addresses.
    pub fn host_ips(case: &Case<'_>) {
        let seen = environment(case, json!({"env": [field("HOSTS", "status.hostIPs")]}));
        let status = case.pod("p")["status"]["hostIPs"].clone();
        let all: Vec<&str> = status.as_array().unwrap().iter().map(|one| one["ip"].as_str().unwrap()).collect();
        assert_lines(&seen, &[&format!("HOSTS={}", all.join(","))]);
    }

    /// On the node's network both are the same.
    pub fn host_network(case: &Case<'_>) {
        let spec = json!({"hostNetwork": true, "containers": [{"env": [
            field("HOST", "status.hostIP"), field("IP", "status.podIP")]}]});
        let seen = environment_of(case, spec);
        let host = told(case, "hostIP");
        assert_lines(&seen, &[&format!("HOST={host}"), &format!("IP={host}")]);
    }

    const AMOUNTS: [(&str, &str); 4] = [
        ("CPU_LIMIT", "limits.cpu"),
        ("MEMORY_LIMIT", "limits.memory"),
        ("CPU", "requests.cpu"),
        ("MEMORY", "requests.memory"),
    ];

    /// Limits and requests, processors rounded up.
    pub fn amounts(case: &Case<'_>) {
        let resources =
            json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
        let env = AMOUNTS.map(|(name, resource)| amount(name, resource));
        let seen = environment(case, json!({"env": env, "resources": resources}));
        assert_lines(&seen, &["CPU_LIMIT=2", "MEMORY_LIMIT=67108864", "CPU=1", "MEMORY=33554432"]);
    }

    /// Huge pages; none, so that it needs no machine that has them.
    pub fn huge_pages(case: &Case<'_>) {
        let none = json!({"cpu": "10m", "hugepages-2Mi": "0"});
        let resources = json!({"requests": none, "limits": {"hugepages-2Mi": "0"}});
        let env = [amount("LIMIT", "limits.hugepages-2Mi"), amount("ASKED", "requests.hugepages-2Mi")];
        let seen = environment(case, json!({"env": env, "resources": resources}));
        assert_lines(&seen, &["LIMIT=0", "ASKED=0"]);
    }

    /// Without a limit of huge pages the node's count.
    pub fn huge_pages_of_the_node(case: &Case<'_>) {
        let seen = environment(case, json!({"env": [amount("LIMIT", "limits.hugepages-2Mi")]}));
        let pages = bytes(allocatable(case)["hugepages-2Mi"].as_str().expect("the node tells its huge pages"));
        assert_lines(&seen, &[&format!("LIMIT={pages}")]);
    }

    /// Bytes of a quantity of memory as nodes report it.
    fn bytes(quantity: &str) -> u64 {
        let (number, unit) = quantity.split_at(quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len()));
        let number: u64 = number.parse().expect("a quantity");
        match unit {
            "" => number,
            "Ki" => number << 10,
            "Mi" => number << 20,
            _ => panic!("{quantity} has a unit that nodes don't use"),
        }
    }

    fn allocatable(case: &Case<'_>) -> Value {
        case.cluster.api.get(&format!("/api/v1/nodes/{}", case.cluster.node_name))["status"]["allocatable"].clone()
    }

    /// Without limits those of the node count.
    pub fn amounts_of_the_node(case: &Case<'_>) {
        let env = [amount("CPU_LIMIT", "limits.cpu"), amount("MEMORY_LIMIT", "limits.memory")];
        let seen = environment(case, json!({"env": env}));
        let node = allocatable(case);
        let memory = bytes(node["memory"].as_str().unwrap());
        let cpu = node["cpu"].as_str().unwrap();
        assert_lines(&seen, &[&format!("CPU_LIMIT={cpu}"), &format!("MEMORY_LIMIT={memory}")]);
    }

    /// Its UID.
    pub fn uid(case: &Case<'_>) {
        let seen = environment(case, json!({"env": [field("ID", "metadata.uid")]}));
        assert_lines(&seen, &[&format!("ID={}", case.pod("p")["metadata"]["uid"].as_str().unwrap())]);
    }

    /// Without limits of the container those of the pod count.
    pub fn amounts_of_the_pod(case: &Case<'_>) {
        let env = [amount("CPU_LIMIT", "limits.cpu"), amount("MEMORY_LIMIT", "limits.memory")];
        let spec = json!({"resources": {"limits": {"cpu": "1", "memory": "64Mi"}}, "containers": [{"env": env}]});
        let seen = environment_of(case, spec);
        assert_lines(&seen, &["CPU_LIMIT=1", "MEMORY_LIMIT=67108864"]);
    }

    /// What the pod does not limit either is the node's.
    pub fn amounts_of_pod_or_node(case: &Case<'_>) {
        let env = [amount("CPU_LIMIT", "limits.cpu"), amount("MEMORY_LIMIT", "limits.memory")];
        let spec = json!({"resources": {"limits": {"memory": "64Mi"}}, "containers": [{"env": env}]});
        let seen = environment_of(case, spec);
        let cpu = format!("CPU_LIMIT={}", allocatable(case)["cpu"].as_str().unwrap());
        assert_lines(&seen, &[&cpu, "MEMORY_LIMIT=67108864"]);
    }
}

/// `$(NAME)` in variables, commands, arguments and sub-paths.
pub mod expansion {
    use orlop_tests::case::image;

    use super::{Case, Value, assert_lines, condition, container, environment, json};

    /// In the value of another variable.
    pub fn variables(case: &Case<'_>) {
        let env = json!([{"name": "ONE", "value": "1"}, {"name": "TWO", "value": "2"},
            {"name": "BOTH", "value": "$(ONE);$(TWO);$$(ONE);$(NONE)"}]);
        assert_lines(&environment(case, json!({"env": env})), &["BOTH=1;2;$(ONE);$(NONE)"]);
    }

    /// Runs a container with command and arguments as given; what it prints.
    fn said(case: &Case<'_>, fields: Value) -> String {
        let mut container = fields;
        container["env"] = json!([{"name": "WORD", "value": "told"}]);
        case.make_pod("p", json!({"restartPolicy": "Never", "containers": [container]}));
        case.until_ended("p");
        case.log("p", "")
    }

    /// In a command.
    pub fn command(case: &Case<'_>) {
        assert_eq!(said(case, json!({"command": ["echo", "a $(WORD) b", "$$(WORD)"]})), "a told b $(WORD)");
    }

    /// In arguments.
    pub fn arguments(case: &Case<'_>) {
        let spec = json!({"command": ["echo"], "args": ["a $(WORD) b", "$$(WORD)"]});
        assert_eq!(said(case, spec), "a told b $(WORD)");
    }

    /// A pod whose container mounts a folder of a volume by an expression of its own name.
    fn with_sub_path(expression: &str, script: &str) -> Value {
        let name = json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        let note = json!({"name": "NOTE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['note']"}}});
        let mounts = json!([{"name": "work", "mountPath": "/part", "subPathExpr": expression},
            {"name": "work", "mountPath": "/whole"}]);
        json!({
            "volumes": [{"name": "work", "emptyDir": {}}],
            "containers": [{"env": [name, note], "command": ["sh", "-c", script], "volumeMounts": mounts}],
        })
    }

    /// In the path of a mount below its volume.
    pub fn sub_path(case: &Case<'_>) {
        let spec = with_sub_path("$(POD_NAME)", "");
        let log = case.output_of("p", spec, "echo word > /part/file; cat /whole/p/file; ls /whole");
        assert_eq!(log, "word\np");
    }

    /// An expression whose value is no path of a folder below the volume fails the container.
    fn is_refused(case: &Case<'_>, note: &str) {
        let mut spec = with_sub_path("$(NOTE)", "exec sleep 1000");
        spec["containers"][0]["name"] = "c".into();
        spec["containers"][0]["image"] = image("busybox").into();
        spec["terminationGracePeriodSeconds"] = 1.into();
        let pod = json!({"metadata": {"name": "p", "annotations": {"note": note}}, "spec": spec});
        case.make("pods", &pod);
        case.until_pod("p", "its container can't be made", |pod| {
            let reason = container(pod, "c")["state"]["waiting"]["reason"].as_str();
            matches!(reason, Some("CreateContainerConfigError" | "CreateContainerError"))
        });
        assert_ne!(condition(&case.pod("p"), "Ready"), "True");
    }

    /// One that is absolute.
    pub fn absolute_sub_path(case: &Case<'_>) {
        is_refused(case, "/tmp");
    }

    /// One with backticks that a shell would run: they are taken as they are.
    pub fn sub_path_with_backticks(case: &Case<'_>) {
        is_refused(case, "..");
    }

    /// A pod whose expression can't be used starts once what it refers to is mended.
    pub fn mended_sub_path(case: &Case<'_>) {
        is_refused(case, "/tmp");
        let change = json!({"metadata": {"annotations": {"note": "good"}}});
        case.cluster.api.must("PATCH", &case.path("pods", "p"), Some(&change));
        case.until_ready("p");
        assert_eq!(case.exec("p", "echo word > /part/file; cat /whole/good/file"), "word");
        assert_eq!(container(&case.pod("p"), "c")["restartCount"], 0);
    }

    /// What is written below an expanded path stays there when the expression changes, and a restart follows it.
    pub fn written_sub_path(case: &Case<'_>) {
        let mut spec = with_sub_path("$(NOTE)", "echo run >> /part/file; sleep 2; exit 1");
        spec["containers"][0]["name"] = "c".into();
        spec["containers"][0]["image"] = image("busybox").into();
        let keeper = json!({"name": "keeper", "image": image("busybox"), "command": ["sleep", "1000"],
            "volumeMounts": [{"name": "work", "mountPath": "/whole"}]});
        spec["containers"].as_array_mut().unwrap().push(keeper);
        spec["terminationGracePeriodSeconds"] = 1.into();
        case.make("pods", &json!({"metadata": {"name": "p", "annotations": {"note": "one/deep"}}, "spec": spec}));
        case.until_pod("p", "it runs", |pod| !container(pod, "c")["state"]["running"].is_null());
        let change = json!({"metadata": {"annotations": {"note": "two"}}});
        case.cluster.api.must("PATCH", &case.path("pods", "p"), Some(&change));
        case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(2));
        let told = case.say(&[
            "exec",
            "p",
            "-c",
            "keeper",
            "--",
            "sh",
            "-c",
            "cat /whole/one/deep/file; echo; cat /whole/two/file",
        ]);
        assert!(told.starts_with("run\n") && told.ends_with("run"), "{told}");
    }

    /// Names of variables may hold any printable character but `=`.
    pub fn any_names(case: &Case<'_>) {
        let mut name = String::new();
        name.extend((b'!'..=b'~').map(char::from).filter(|letter| *letter != '='));
        let env = json!([{"name": name, "value": "v"}, {"name": "$(x)", "value": "w"}, {"name": "0", "value": "z"}]);
        let seen = environment(case, json!({"env": env}));
        assert_lines(&seen, &[&format!("{name}=v"), "$(x)=w", "0=z"]);
    }
}

/// Commands and arguments of the image and of the pod.
pub mod commands {
    use super::{Case, Value, image, json};

    /// `localhost/said:1` says `image default` unless it is told otherwise.
    fn said(case: &Case<'_>, fields: Value) -> String {
        let mut container = json!({"name": "c", "image": image("said"), "command": [], "args": []});
        for (name, value) in fields.as_object().unwrap() {
            container[name] = value.clone();
        }
        case.make_pod("p", json!({"restartPolicy": "Never", "containers": [container]}));
        let pod = case.until_ended("p");
        assert_eq!(pod["status"]["phase"], "Succeeded", "{}", pod["status"]);
        case.log("p", "")
    }

    /// The image's own.
    pub fn of_the_image(case: &Case<'_>) {
        assert_eq!(said(case, json!({})), "image default");
    }

    /// Other arguments for the image's command.
    pub fn other_arguments(case: &Case<'_>) {
        assert_eq!(said(case, json!({"args": ["given", "words"]})), "image given words");
    }

    /// Another command: the image's arguments are not its own.
    pub fn other_command(case: &Case<'_>) {
        assert_eq!(said(case, json!({"command": ["echo", "given"]})), "given");
    }

    /// Both.
    pub fn both(case: &Case<'_>) {
        assert_eq!(said(case, json!({"command": ["echo", "one"], "args": ["two"]})), "one two");
    }
}
