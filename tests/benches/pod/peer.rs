//! The runtimes that are compared, each in a world of its own and spoken to by the same requests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use orlop_proto::cri;
use orlop_proto::cri::image_service_client::ImageServiceClient;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use orlop_tests::case::image;
use orlop_tests::census::remove_empty_cgroups;
use orlop_tests::containerd::{Containerd, upstream_network, upstream_plugins};
use orlop_tests::images;
use orlop_tests::place::{debian, programs};
use orlop_tests::world::{Daemon, World, run, until};
use tonic::transport::{Channel, Endpoint};

use crate::process;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The image of the peer's sandboxes.
const PAUSE: &str = "localhost:5001/pause:1";

/// A runtime.
pub struct Peer {
    /// For people.
    pub name: &'static str,
    client: RuntimeServiceClient<Channel>,
    /// Names of the programs that stand by a pod, and what marks those of this instance.
    helpers: &'static [&'static str],
    mark: String,
    folder: PathBuf,
    daemon: Daemon,
    registries: Vec<Daemon>,
}

/// A pod that is up.
pub struct Pod {
    sandbox: String,
    container: String,
}

impl Peer {
    /// Our CRI server with our shim and plugins.
    pub async fn orlop(world: &World) -> Peer {
        let mut command = world.orlop();
        command.arg("cri").env("RUST_LOG", "warn");
        let daemon = Daemon::start(command, world.folder().join("cri.log"));
        Peer::new("orlop", world, daemon, world.socket(), &["orlop-shim", "orlop-pause"]).await
    }

    /// containerd with its own shim, runc and the upstream plugins.
    pub async fn containerd(world: &World) -> Peer {
        let folder = world.folder();
        let containerd = Containerd {
            folder: folder.to_path_buf(),
            pause: PAUSE.into(),
            networks: upstream_network(folder, "bench0", "10.66.0.0/16"),
            plugins: upstream_plugins(),
            registries: None,
        };
        let daemon = containerd.start(world);
        let socket = containerd.socket();
        let pause = push_pause(world);
        let mut peer = Peer::new("containerd", world, daemon, socket, &["containerd-shim-runc-v2", "pause"]).await;
        peer.registries.push(pause);
        peer
    }

    async fn new(
        name: &'static str,
        world: &World,
        daemon: Daemon,
        socket: PathBuf,
        helpers: &'static [&'static str],
    ) -> Peer {
        let registry = images::registry(world, &images::storage());
        until("the socket is there", || socket.exists().then_some(()));
        let client = connect(&socket).await;
        let mark = format!("orlop-bench-{name}-{}", std::process::id());
        Peer { name, client, helpers, mark, folder: world.folder().to_path_buf(), daemon, registries: vec![registry] }
    }

    /// Number of the daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The daemon and what stands by its pods, without the pods' own programs.
    pub fn processes(&self) -> Vec<u32> {
        process::find(self.daemon.pid(), self.helpers, &[&self.mark, &self.folder.to_string_lossy()])
    }

    /// Brings a pod of one container up.
    pub async fn up(&mut self, name: &str) -> Pod {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: self.mark.clone(),
                attempt: 0,
            }),
            log_directory: self.folder.join("logs").join(name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/{name}", self.mark),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox = self.client.run_pod_sandbox(request).await.expect("run a sandbox").into_inner().pod_sandbox_id;
        let container = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image("busybox"), ..Default::default() }),
            command: vec!["sleep".into(), "3600".into()],
            log_path: "c.log".into(),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = self.client.create_container(request).await.expect("create a container").into_inner();
        let container = container.container_id;
        let request = cri::StartContainerRequest { container_id: container.clone() };
        self.client.start_container(request).await.expect("start a container");
        Pod { sandbox, container }
    }

    /// Runs `true` in a pod.
    pub async fn exec(&mut self, pod: &Pod) {
        let request =
            cri::ExecSyncRequest { container_id: pod.container.clone(), cmd: vec!["true".into()], timeout: 10 };
        let answer = self.client.exec_sync(request).await.expect("exec").into_inner();
        assert_eq!(answer.exit_code, 0);
    }

    /// Takes a pod down.
    pub async fn down(&mut self, pod: &Pod) {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        self.client.stop_pod_sandbox(request).await.expect("stop a sandbox");
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        self.client.remove_pod_sandbox(request).await.expect("remove a sandbox");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The cgroups of the pods are the caller's, as they are the kubelet's.
        remove_empty_cgroups(&self.mark);
    }
}

async fn connect(socket: &Path) -> RuntimeServiceClient<Channel> {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost").timeout(DEADLINE);
    let channel = endpoint.connect_with_connector(connector).await.expect("connect to the runtime");
    let mut client = RuntimeServiceClient::new(channel.clone());
    let end = Instant::now() + DEADLINE;
    while let Err(status) = client.version(cri::VersionRequest::default()).await {
        assert!(Instant::now() < end, "the runtime gives no answer: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let image = Some(cri::ImageSpec { image: image("busybox"), ..Default::default() });
    let request = cri::PullImageRequest { image, ..Default::default() };
    ImageServiceClient::new(channel).pull_image(request).await.expect("pull the image");
    client
}

/// Our pause program as an image, so that both pay for the same one. The registry has to live while it is pulled.
fn push_pause(world: &World) -> Daemon {
    let storage = world.folder().join("pause-images");
    let registry = Daemon::of(images::serve(&storage, 5001, world.folder(), world.command("docker-registry"), false));
    let archive = world.folder().join("pause.tar").display().to_string();
    let program = programs().join("orlop-pause").display().to_string();
    let mut build = world.orlop();
    build.args(["image", "build", "--entrypoint", "/pause", "--output", &archive]);
    run(build.args(["--file", &format!("{program}:/pause"), PAUSE]));
    let mut copy = world.command(debian("skopeo", "skopeo"));
    copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
    run(copy.args([&format!("oci-archive:{archive}"), &format!("docker://{PAUSE}")]));
    registry
}
