//! A CRI server in a world of its own, its gRPC client, and what has to hold when a case is over.

use hyper_util::rt::TokioIo;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use orlop_proto::cri::{ExecRequest, ExecSyncRequest, ExecSyncResponse};
use orlop_tests::hostile_image::HostileImages;
use orlop_tests::invariant::Invariant;
use orlop_tests::world::{Count, Daemon, World, read, run, until};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// Name of the image that does nothing wrong.
pub const PLAIN: &str = "localhost/plain:1";

/// The server.
pub struct Server {
    pub world: World,
    pub daemon: Daemon,
    pub invariant: Invariant,
    before: Count,
    runtime: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
}

impl Server {
    /// Starts it with busybox as [`PLAIN`] and what else `images` adds.
    pub fn start(images: impl FnOnce(&mut HostileImages)) -> Server {
        let world = World::new();
        let mut command = world.orlop();
        command.arg("cri");
        let daemon = Daemon::start(command, world.folder().join("cri.log"));
        until("the socket is there", || world.socket().exists().then_some(()));
        let mut hostile = HostileImages::new();
        images(&mut hostile);
        hostile.add(PLAIN, &json!({"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"]}));
        hostile.load(&world);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = world.socket();
        let connect = async move {
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
            });
            Endpoint::from_static("http://cri").connect_with_connector(connector).await
        };
        let client = RuntimeServiceClient::new(runtime.block_on(connect).expect("connect to the server"))
            .max_decoding_message_size(16 << 20);
        let (before, invariant) = (world.count(), Invariant::take(Some(daemon.pid())));
        Server { world, daemon, invariant, before, runtime, client }
    }

    /// Writes a file of JSON and returns its path.
    fn write(&self, file: &str, value: &Value) -> String {
        let path = self.world.folder().join(file);
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    }

    /// The file of a pod; `linux` is added to what makes it one.
    pub fn pod_file(&self, name: &str, linux: Value) -> String {
        let mut whole = json!({"cgroup_parent": format!("/orlop-test-{}/{name}", std::process::id())});
        whole.as_object_mut().unwrap().extend(linux.as_object().cloned().unwrap_or_default());
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0},
            "log_directory": self.world.folder().join("logs"), "hostname": name, "linux": whole,
        });
        self.write(&format!("{name}-pod.json"), &pod)
    }

    /// Runs a pod; its file and its sandbox.
    pub fn run_pod(&self, name: &str) -> (String, String) {
        let file = self.pod_file(name, json!({}));
        let sandbox = read(self.world.crictl().args(["runp", &file]));
        (file, sandbox)
    }

    /// The file of a container; `extra` replaces what is usual.
    pub fn container_file(&self, name: &str, extra: &Value) -> String {
        let mut container = json!({
            "metadata": {"name": name}, "image": {"image": PLAIN}, "log_path": format!("{name}.log"),
            "linux": {"security_context": {"namespace_options": {"pid": 1}}},
        });
        container.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
        self.write(&format!("{name}-container.json"), &container)
    }

    /// Makes a container; its id, or why not.
    pub fn create(&self, pod: &(String, String), name: &str, extra: &Value) -> Result<String, String> {
        let file = self.container_file(name, extra);
        said(self.world.crictl().args(["create", &pod.1, &file, &pod.0]))
    }

    /// Makes and starts a container; its id, or why not.
    pub fn begin(&self, pod: &(String, String), name: &str, extra: &Value) -> Result<String, String> {
        let id = self.create(pod, name, extra)?;
        said(self.world.crictl().args(["start", &id])).map(|_| id)
    }

    /// Runs a container to its end; its code and log, or why not.
    pub fn finish(&self, pod: &(String, String), name: &str, extra: &Value) -> Result<(i64, String), String> {
        let id = self.begin(pod, name, extra)?;
        let code = until("it has ended", || {
            let status: Value = serde_json::from_str(&read(self.world.crictl().args(["inspect", &id]))).unwrap();
            (status["status"]["state"] == "CONTAINER_EXITED").then(|| status["status"]["exitCode"].as_i64())
        });
        Ok((code.unwrap_or(-1), read(self.world.crictl().args(["logs", &id]))))
    }

    /// Runs a command in a container.
    pub fn exec(&self, id: &str, words: &[&str], timeout: i64) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = words.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        let mut client = self.client.clone();
        self.runtime.block_on(client.exec_sync(request)).map(tonic::Response::into_inner)
    }

    /// The URL of a command with a terminal.
    pub fn exec_url(&self, id: &str, words: &[&str]) -> String {
        let cmd = words.iter().map(ToString::to_string).collect();
        let request = ExecRequest { container_id: id.into(), cmd, tty: true, stdin: true, stdout: true, stderr: false };
        let mut client = self.client.clone();
        self.runtime.block_on(client.exec(request)).expect("a URL").into_inner().url
    }

    /// Removes all pods and sees to it that everything is as before the case.
    pub fn end(mut self) {
        run(self.world.crictl().args(["rmp", "-f", "-a"]));
        self.daemon.check();
        assert_eq!(self.world.count(), self.before, "something was left behind");
        self.invariant.check();
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// What a command prints when it succeeds, or what it says when it doesn't.
pub fn said(command: &mut std::process::Command) -> Result<String, String> {
    let output = command.output().expect("run a command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
