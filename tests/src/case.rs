//! What one case has: a cluster that it may share, and a namespace that it doesn't.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::world::{read, refuse, run, until};

/// A case's view of its cluster.
pub struct Case<'a> {
    /// The cluster, with other cases in it.
    pub cluster: &'a Cluster,
    /// The case's own namespace.
    pub namespace: String,
}

impl<'a> Case<'a> {
    /// Makes the namespace and waits until pods can be made in it.
    ///
    /// # Panics
    /// When the API refuses.
    #[must_use]
    pub fn start(cluster: &'a Cluster, namespace: &str) -> Case<'a> {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        cluster.api.must("POST", "/api/v1/namespaces", Some(&body));
        let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        until("the namespace has its service account", || cluster.api.find(&account).map(drop));
        Case { cluster, namespace: namespace.to_string() }
    }

    /// Ends what the case left and its namespace.
    ///
    /// # Panics
    /// When pods do not end.
    pub fn end(&self) {
        let pods = self.path("pods", "");
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1});
        self.cluster.api.must("DELETE", &pods, Some(&options));
        self.until_none("pods");
        let claims = self.path("persistentvolumeclaims", "");
        self.cluster.api.must("DELETE", &claims, None);
        self.until_none("persistentvolumeclaims");
        self.cluster.api.must("DELETE", &format!("/api/v1/namespaces/{}", self.namespace), None);
    }

    fn until_none(&self, kind: &str) {
        let path = self.path(kind, "");
        until(&format!("no {kind} are left in {}", self.namespace), || {
            self.cluster.api.get(&path)["items"].as_array().is_some_and(Vec::is_empty).then_some(())
        });
    }

    /// Path of an object of the core group in the namespace; without a name, of all of them.
    #[must_use]
    pub fn path(&self, kind: &str, name: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/{kind}", self.namespace);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }

    /// `kubectl` in the namespace.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    /// What `kubectl` prints, when it succeeds.
    ///
    /// # Panics
    /// When it doesn't.
    #[must_use]
    pub fn say(&self, arguments: &[&str]) -> String {
        read(&mut self.kubectl(arguments))
    }

    /// What `kubectl` says when it fails.
    ///
    /// # Panics
    /// When it succeeds.
    #[must_use]
    pub fn refused(&self, arguments: &[&str]) -> String {
        refuse(&mut self.kubectl(arguments))
    }

    /// Runs `kubectl` with text on its standard input.
    ///
    /// # Panics
    /// When it can't be run.
    #[must_use]
    pub fn feed(&self, arguments: &[&str], text: &str) -> Output {
        let mut command = self.kubectl(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run kubectl");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Applies a manifest.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, manifest: &str) {
        let output = self.feed(&["apply", "-f", "-"], manifest);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply: {words}\n{manifest}");
        assert!(!words.contains("Warning"), "kubectl apply: {words}\n{manifest}");
    }

    /// Makes a pod of busybox by its `spec` in YAML's flow style (`image` and a grace period of a second are given).
    ///
    /// # Panics
    /// When it is refused.
    pub fn make_pod(&self, name: &str, mut spec: Value) {
        for kind in ["containers", "initContainers"] {
            for container in spec[kind].as_array_mut().into_iter().flatten() {
                let fields = container.as_object_mut().expect("a container");
                fields.entry("image").or_insert_with(|| image("busybox").into());
                fields.entry("name").or_insert_with(|| "c".into());
            }
        }
        let fields = spec.as_object_mut().expect("a spec");
        fields.entry("terminationGracePeriodSeconds").or_insert_with(|| 1.into());
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.make("pods", &pod);
    }

    /// Makes an object of the core group.
    ///
    /// # Panics
    /// When it is refused.
    pub fn make(&self, kind: &str, object: &Value) {
        self.cluster.api.must("POST", &self.path(kind, ""), Some(object));
    }

    /// A pod as it is now.
    ///
    /// # Panics
    /// When it isn't there.
    #[must_use]
    pub fn pod(&self, name: &str) -> Value {
        self.cluster.api.get(&self.path("pods", name))
    }

    /// Waits until a pod is as asked, and returns it.
    ///
    /// # Panics
    /// When it isn't in time, with the pod.
    pub fn until_pod(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let pod = self.pod(name);
            if is(&pod) {
                return pod;
            }
            assert!(Instant::now() < end, "pod {name} is not in time: {what}\n{}", pod["status"]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a pod is there, and returns it.
    ///
    /// # Panics
    /// When it isn't in time.
    pub fn until_present(&self, name: &str) -> Value {
        let path = self.path("pods", name);
        until(&format!("pod {name} is there"), || self.cluster.api.find(&path))
    }

    /// Waits until a pod is ready.
    ///
    /// # Panics
    /// When it isn't in time.
    pub fn until_ready(&self, name: &str) -> Value {
        self.until_pod(name, "ready", |pod| condition(pod, "Ready") == "True")
    }

    /// Waits until a pod has ended, and returns it.
    ///
    /// # Panics
    /// When it doesn't in time.
    pub fn until_ended(&self, name: &str) -> Value {
        self.until_pod(name, "ended", |pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
    }

    /// Waits until a pod is gone.
    ///
    /// # Panics
    /// When it isn't in time.
    pub fn until_gone(&self, name: &str) {
        let path = self.path("pods", name);
        until(&format!("pod {name} is gone"), || self.cluster.api.find(&path).is_none().then_some(()));
    }

    /// Waits for an event about an object whose reason and message hold these words, and returns its message.
    ///
    /// # Panics
    /// When there is none in time, with those that are.
    pub fn until_event(&self, object: &str, reason: &str, words: &str) -> String {
        self.until_event_within(Duration::from_secs(60), object, reason, words)
    }

    /// The same, for what takes longer.
    ///
    /// # Panics
    /// When there is none in time, with those that are.
    pub fn until_event_within(&self, limit: Duration, object: &str, reason: &str, words: &str) -> String {
        let end = Instant::now() + limit;
        loop {
            let events = self.cluster.api.get(&self.path("events", ""));
            let mut seen = String::new();
            for event in events["items"].as_array().into_iter().flatten() {
                let message = event["message"].as_str().unwrap_or_default();
                if event["involvedObject"]["name"] != object {
                    continue;
                }
                if event["reason"] == reason && message.contains(words) {
                    return message.to_string();
                }
                seen.push_str(&format!("{}: {message}\n", event["reason"]));
            }
            assert!(Instant::now() < end, "no event {reason} ({words}) about {object}; there are\n{seen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a pod of one container to its end and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn output_of(&self, name: &str, mut spec: Value, script: &str) -> String {
        spec["restartPolicy"] = "Never".into();
        if spec["containers"].is_null() {
            spec["containers"] = json!([{}]);
        }
        spec["containers"][0]["command"] = json!(["sh", "-c", script]);
        self.make_pod(name, spec);
        let pod = self.until_ended(name);
        let log = self.log(name, "");
        assert_eq!(pod["status"]["phase"], "Succeeded", "{log}\n{}", pod["status"]);
        log
    }

    /// The log of a container (of the only one, when its name is empty), without the white space around it.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn log(&self, pod: &str, container: &str) -> String {
        self.read_log(pod, container).unwrap_or_else(|why| panic!("the log of {pod}/{container}: {why}"))
    }

    /// The same, or nothing where there is none yet.
    #[must_use]
    pub fn log_if_any(&self, pod: &str, container: &str) -> Option<String> {
        self.read_log(pod, container).ok()
    }

    fn read_log(&self, pod: &str, container: &str) -> Result<String, String> {
        let path = format!("{}/log?container={container}", self.path("pods", pod));
        let path = path.trim_end_matches("?container=").to_string();
        match self.cluster.api.send("GET", &path, None).expect("read a log") {
            (200, Value::String(text)) => Ok(text.trim().to_string()),
            (200, other) => Ok(other.to_string()),
            (code, value) => Err(format!("{code} {value}")),
        }
    }

    /// The log of a container up to its end.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn follow(&self, pod: &str, container: &str) -> String {
        self.say(&["logs", "--follow", pod, "--container", container])
    }

    /// Runs a command in a pod's container and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn exec(&self, pod: &str, script: &str) -> String {
        self.say(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Fetches a page from inside the world.
    #[must_use]
    pub fn fetch(&self, url: &str) -> Option<String> {
        let mut curl = self.cluster.world.command("curl");
        let output = curl.args(["--silent", "--fail", "--max-time", "5", url]).output().expect("run curl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A pod's sandbox as the runtime tells it.
    ///
    /// # Panics
    /// When the runtime does not know one.
    #[must_use]
    pub fn sandbox(&self, pod: &str) -> Value {
        let world = &self.cluster.world;
        let ids = read(world.crictl().args([
            "pods",
            "--quiet",
            "--name",
            &format!("^{pod}$"),
            "--namespace",
            &self.namespace,
        ]));
        let id = ids.lines().next().unwrap_or_else(|| panic!("{pod} has no sandbox"));
        serde_json::from_str(&read(world.crictl().args(["inspectp", id]))).expect("crictl prints JSON")
    }

    /// The folder of a pod's cgroup, in the hierarchy of a controller where there are several.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn cgroup(&self, controller: &str, pod: &str) -> PathBuf {
        let uid = self.pod(pod)["metadata"]["uid"].as_str().expect("a UID").to_string();
        let root = self.cluster.world.cgroup();
        let mount = Path::new("/sys/fs/cgroup");
        let found = [mount.join(controller), mount.to_path_buf()].into_iter().find_map(|mount| {
            let folder = |class: &str| PathBuf::from(format!("{}{root}/kubepods{class}/pod{uid}", mount.display()));
            ["", "/burstable", "/besteffort"].map(folder).into_iter().find(|folder| folder.is_dir())
        });
        found.unwrap_or_else(|| panic!("{pod} has no cgroup"))
    }

    /// What a person would look at after a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for arguments in [&["describe", "pods"][..], &["events"][..]] {
            let output = self.kubectl(arguments).output().expect("run kubectl");
            text.push_str(&format!("--- kubectl {}\n", arguments.join(" ")));
            text.push_str(&String::from_utf8_lossy(&output.stdout));
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        let log = std::fs::read_to_string(self.cluster.node_log()).unwrap_or_default();
        text.push_str("--- what the node said of this namespace\n");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&self.namespace)).collect();
        for line in &lines[lines.len().saturating_sub(60)..] {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Runs a command in the world to its success.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        run(self.cluster.world.command(program).args(arguments))
    }
}

/// An image of the registry.
#[must_use]
pub fn image(name: &str) -> String {
    format!("localhost:5000/{name}:1")
}

/// The status of a condition, or an empty text.
#[must_use]
pub fn condition<'v>(object: &'v Value, kind: &str) -> &'v str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

/// The status of a container, of any kind, by its name.
#[must_use]
pub fn container<'v>(pod: &'v Value, name: &str) -> &'v Value {
    const NONE: &Value = &Value::Null;
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .flat_map(|kind| pod["status"][kind].as_array().into_iter().flatten())
        .find(|status| status["name"] == name)
        .unwrap_or(NONE)
}
