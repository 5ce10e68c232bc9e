//! The runtimes that benchmarks compare, each in a world of its own and spoken to by the same requests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use orlop_proto::cri;
use orlop_proto::cri::image_service_client::ImageServiceClient;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::case::image;
use crate::census::remove_empty_cgroups;
use crate::containerd::{Containerd, upstream_network, upstream_plugins};
use crate::place::{debian, programs};
use crate::world::{Daemon, World, run, until};
use crate::{images, process};

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The image of the peer's sandboxes.
pub const PAUSE: &str = "localhost:5001/pause:1";

/// A runtime.
pub struct Peer {
    /// For people.
    pub name: &'static str,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
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
    ///
    /// # Panics
    /// When it does not start, or the image can't be pulled.
    pub async fn orlop(world: &World) -> Peer {
        let mut command = world.orlop();
        command.arg("cri").env("RUST_LOG", "warn");
        let daemon = Daemon::start(command, world.folder().join("cri.log"));
        Peer::new("orlop", world, daemon, world.socket(), &["orlop-shim", "orlop-pause"]).await
    }

    /// containerd with its own shim, runc and the upstream plugins.
    ///
    /// # Panics
    /// When it does not start, or an image can't be pulled.
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
        let (client, images) = connect(&socket).await;
        let mark = format!("orlop-bench-{name}-{}", std::process::id());
        let folder = world.folder().to_path_buf();
        Peer { name, client, images, helpers, mark, folder, daemon, registries: vec![registry] }
    }

    /// Number of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The daemon and what stands by its pods, without the pods' own programs.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        process::find(self.daemon.pid(), self.helpers, &[&self.mark, &self.folder.to_string_lossy()])
    }

    /// Brings a pod of one container up.
    ///
    /// # Panics
    /// When the runtime refuses.
    pub async fn up(&self, name: &str) -> Pod {
        let mut client = self.client.clone();
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
        let sandbox = client.run_pod_sandbox(request).await.expect("run a sandbox").into_inner().pod_sandbox_id;
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
        let container = client.create_container(request).await.expect("create a container").into_inner();
        let container = container.container_id;
        let request = cri::StartContainerRequest { container_id: container.clone() };
        client.start_container(request).await.expect("start a container");
        Pod { sandbox, container }
    }

    /// Runs `true` in a pod.
    ///
    /// # Panics
    /// When the runtime refuses, or `true` fails.
    pub async fn exec(&self, pod: &Pod) {
        let request =
            cri::ExecSyncRequest { container_id: pod.container.clone(), cmd: vec!["true".into()], timeout: 10 };
        let answer = self.client.clone().exec_sync(request).await.expect("exec").into_inner();
        assert_eq!(answer.exit_code, 0);
    }

    /// Takes a pod down.
    ///
    /// # Panics
    /// When the runtime refuses.
    pub async fn down(&self, pod: &Pod) {
        let mut client = self.client.clone();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        client.stop_pod_sandbox(request).await.expect("stop a sandbox");
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        client.remove_pod_sandbox(request).await.expect("remove a sandbox");
    }

    /// Pulls an image by name.
    ///
    /// # Panics
    /// When the runtime refuses.
    pub async fn pull(&self, name: &str) {
        let image = Some(cri::ImageSpec { image: name.into(), ..Default::default() });
        let request = cri::PullImageRequest { image, ..Default::default() };
        self.images.clone().pull_image(request).await.expect("pull an image");
    }

    /// Removes an image.
    ///
    /// # Panics
    /// When the runtime refuses.
    pub async fn remove(&self, name: &str) {
        let image = Some(cri::ImageSpec { image: name.into(), ..Default::default() });
        self.images.clone().remove_image(cri::RemoveImageRequest { image }).await.expect("remove an image");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The cgroups of the pods are the caller's, as they are the kubelet's.
        remove_empty_cgroups(&self.mark);
    }
}

async fn connect(socket: &Path) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
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
    let mut images = ImageServiceClient::new(channel);
    images.pull_image(request).await.expect("pull the image");
    (client, images)
}

/// Our pause program as an image, so that both pay for the same one. The registry has to live while it is pulled.
///
/// # Panics
/// When it can't be served.
#[must_use]
pub fn push_pause(world: &World) -> Daemon {
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
