//! The driver on the real kernel: mounts, restarts, users of a volume, what it refuses.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_csi::{CsiConfig, CsiError, serve};
use orlop_kernel::mount::mounts_below;
use orlop_proto::csi::controller_client::ControllerClient;
use orlop_proto::csi::node_client::NodeClient;
use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop_proto::csi::*;
use orlop_proto::registration::registration_client::RegistrationClient;
use orlop_proto::registration::{InfoRequest, RegistrationStatus};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(20);

async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    let started = std::time::Instant::now();
    loop {
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let socket = orlop_kernel::socket::connect(&path)?;
                Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(socket.into())?))
            }
        });
        match Endpoint::from_static("http://localhost").connect_with_connector(connector).await {
            Ok(channel) => return channel,
            Err(error) if started.elapsed() > DEADLINE => panic!("connect to {}: {error}", socket.display()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

struct Driver {
    config: CsiConfig,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), CsiError>>,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Driver {
    async fn start(base: &Path) -> Driver {
        let config = CsiConfig::new(base.join("kubelet"), base.join("data"), "node-1");
        let cancel = CancellationToken::new();
        let task = tokio::spawn(serve(config.clone(), cancel.clone()));
        let channel = connect(&config.socket).await;
        let (controller, node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
        Driver { config, cancel, task, controller, node }
    }

    async fn stop(self) {
        self.cancel.cancel();
        drop((self.controller, self.node));
        self.task.await.unwrap().unwrap();
        assert!(!self.config.socket.exists() && !self.config.registration_socket().exists());
    }

    async fn create(&mut self, name: &str, mode: Mode) -> String {
        let answer = self.controller.create_volume(create_request(name, mode)).await.unwrap().into_inner();
        answer.volume.unwrap().volume_id
    }

    fn folder(&self, part: &str) -> PathBuf {
        let folder = self.config.kubelet_root.join(part);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    async fn stage(&mut self, id: &str) -> PathBuf {
        let path = self.folder(&format!("plugins/{id}/globalmount"));
        let request = NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(&path),
            volume_capability: Some(capability(Mode::SingleNodeWriter)),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await.unwrap();
        path
    }

    async fn publish(
        &mut self,
        id: &str,
        stage: &Path,
        pod: &str,
        mode: Mode,
        ro: bool,
    ) -> Result<PathBuf, tonic::Status> {
        let target = self.folder(&format!("pods/{pod}/volumes")).join("mount");
        let request = NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(stage),
            target_path: text(&target),
            volume_capability: Some(capability(mode)),
            readonly: ro,
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(|_| target)
    }

    async fn unpublish(&mut self, id: &str, target: &Path) {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: text(target) };
        self.node.node_unpublish_volume(request).await.unwrap();
    }

    async fn unstage(&mut self, id: &str, path: &Path) {
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: text(path) };
        self.node.node_unstage_volume(request).await.unwrap();
    }

    async fn delete(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        self.controller.delete_volume(request).await.map(drop)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn create_request(name: &str, mode: Mode) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![capability(mode)],
        ..Default::default()
    }
}

/// Runs a test in a mount namespace of its own: all its threads are born in it.
fn in_own_mounts(test: impl Future<Output = ()> + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root (cargo xtask test does)");
    let thread = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare the mounts");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make / private");
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn data_stay_while_pods_and_drivers_come_and_go() {
    in_own_mounts(async {
        let place = tempfile::tempdir().unwrap();
        let mut driver = Driver::start(place.path()).await;
        let id = driver.create("pvc-1", Mode::SingleNodeWriter).await;
        assert_eq!(driver.create("pvc-1", Mode::SingleNodeWriter).await, id, "the same name is the same volume");
        let stage = driver.stage(&id).await;
        driver.stage(&id).await;
        let target = driver.publish(&id, &stage, "a", Mode::SingleNodeWriter, false).await.unwrap();
        driver.publish(&id, &stage, "a", Mode::SingleNodeWriter, false).await.unwrap();
        let different = driver.publish(&id, &stage, "a", Mode::SingleNodeWriter, true).await.unwrap_err();
        assert_eq!(different.code(), Code::AlreadyExists);
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o777);
        std::fs::write(target.join("file"), "kept").unwrap();
        let in_use = driver.delete(&id).await.unwrap_err();
        assert_eq!(in_use.code(), Code::FailedPrecondition, "{in_use:?}");
        driver.stop().await;
        // The pod has gone on without the driver; the next driver finds all as it was.
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "kept");
        let mut driver = Driver::start(place.path()).await;
        assert_eq!(driver.delete(&id).await.unwrap_err().code(), Code::FailedPrecondition);
        let other = driver.publish(&id, &stage, "b", Mode::SingleNodeWriter, true).await.unwrap();
        assert_eq!(std::fs::read_to_string(other.join("file")).unwrap(), "kept");
        assert!(std::fs::write(other.join("file"), "no").is_err(), "read-only");
        for target in [&target, &other, &target] {
            driver.unpublish(&id, target).await;
            assert!(!target.exists());
        }
        driver.unstage(&id, &stage).await;
        driver.unstage(&id, &stage).await;
        assert!(mounts_below(place.path()).unwrap().is_empty(), "nothing is mounted any more");
        driver.delete(&id).await.unwrap();
        driver.delete(&id).await.unwrap();
        assert_eq!(std::fs::read_dir(place.path().join("data/volumes")).unwrap().count(), 0);
        driver.stop().await;
    });
}

#[test]
fn users_are_counted_and_paths_stay_below_the_root() {
    in_own_mounts(async {
        let place = tempfile::tempdir().unwrap();
        let mut driver = Driver::start(place.path()).await;
        let id = driver.create("one", Mode::SingleNodeSingleWriter).await;
        let stage = driver.stage(&id).await;
        let first = driver.publish(&id, &stage, "a", Mode::SingleNodeSingleWriter, false).await.unwrap();
        let second = driver.publish(&id, &stage, "b", Mode::SingleNodeSingleWriter, false).await.unwrap_err();
        assert_eq!(second.code(), Code::FailedPrecondition);
        driver.unpublish(&id, &first).await;
        let second = driver.publish(&id, &stage, "b", Mode::SingleNodeSingleWriter, false).await.unwrap();
        driver.unpublish(&id, &second).await;

        std::os::unix::fs::symlink(place.path(), driver.folder("pods").join("link")).unwrap();
        let link = text(&driver.config.kubelet_root.join("pods/link/x"));
        let relative = text(&driver.config.kubelet_root.join("pods/../../x"));
        for (target, code) in [
            ("/etc/x", Code::InvalidArgument),
            (relative.as_str(), Code::InvalidArgument),
            (link.as_str(), Code::FailedPrecondition),
            ("", Code::InvalidArgument),
        ] {
            let request = NodePublishVolumeRequest {
                volume_id: id.clone(),
                staging_target_path: text(&stage),
                target_path: target.into(),
                volume_capability: Some(capability(Mode::SingleNodeWriter)),
                ..Default::default()
            };
            assert_eq!(driver.node.node_publish_volume(request).await.unwrap_err().code(), code, "{target:?}");
        }
        for hostile in ["../../etc", "vol-x", "/"] {
            let unknown = driver.publish(hostile, &stage, "a", Mode::SingleNodeWriter, false).await.unwrap_err();
            assert_eq!(unknown.code(), Code::NotFound, "{hostile}");
            driver.delete(hostile).await.unwrap();
        }
        driver.unstage(&id, &stage).await;
        let not_staged = driver.publish(&id, &stage, "a", Mode::SingleNodeWriter, false).await.unwrap_err();
        assert_eq!(not_staged.code(), Code::FailedPrecondition);
        assert!(mounts_below(place.path()).unwrap().is_empty());
        driver.stop().await;
    });
}

#[test]
fn what_is_asked_for_in_vain_is_named() {
    in_own_mounts(async {
        let place = tempfile::tempdir().unwrap();
        let mut driver = Driver::start(place.path()).await;
        let request = |change: &dyn Fn(&mut CreateVolumeRequest)| {
            let mut request = create_request("x", Mode::SingleNodeWriter);
            change(&mut request);
            request
        };
        let elsewhere = Topology { segments: [("topology.local.csi.orlop.dev/node".into(), "node-2".into())].into() };
        for (wrong, code, word) in [
            (request(&|r| r.name.clear()), Code::InvalidArgument, "name"),
            (request(&|r| r.volume_capabilities.clear()), Code::InvalidArgument, "volume_capabilities"),
            (
                request(&|r| r.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)]),
                Code::InvalidArgument,
                "ReadWriteOnce",
            ),
            (request(&|r| drop(r.parameters.insert("type".into(), "ssd".into()))), Code::InvalidArgument, "type"),
            (
                request(&|r| r.capacity_range = Some(CapacityRange { required_bytes: i64::MAX, limit_bytes: 0 })),
                Code::OutOfRange,
                "free on this node",
            ),
            (
                request(&|r| {
                    r.accessibility_requirements =
                        Some(TopologyRequirement { requisite: vec![elsewhere.clone()], preferred: vec![] });
                }),
                Code::ResourceExhausted,
                "node-1",
            ),
        ] {
            let error = driver.controller.create_volume(wrong.clone()).await.unwrap_err();
            assert!(error.code() == code && error.message().contains(word), "{wrong:?}: {error:?}");
        }
        let second = serve(driver.config.clone(), CancellationToken::new()).await.unwrap_err();
        assert!(second.to_string().contains("in use by another driver"), "{second}");
        driver.stop().await;
    });
}

#[test]
fn the_driver_registers_and_pages_its_volumes() {
    in_own_mounts(async {
        let place = tempfile::tempdir().unwrap();
        let mut driver = Driver::start(place.path()).await;
        let mut plugin = RegistrationClient::new(connect(&driver.config.registration_socket()).await);
        let info = plugin.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "local.csi.orlop.dev"));
        assert_eq!(info.endpoint, text(&driver.config.socket));
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        plugin.notify_registration_status(status).await.unwrap();
        let node = driver.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(node.node_id, "node-1");
        for name in ["a", "b", "c"] {
            driver.create(name, Mode::SingleNodeWriter).await;
        }
        let page = ListVolumesRequest { max_entries: 2, starting_token: String::new() };
        let first = driver.controller.list_volumes(page).await.unwrap().into_inner();
        assert_eq!(first.entries.len(), 2);
        let gone = first.entries[1].volume.clone().unwrap().volume_id;
        driver.delete(&gone).await.unwrap();
        let page = ListVolumesRequest { max_entries: 2, starting_token: first.next_token };
        let last = driver.controller.list_volumes(page).await.unwrap().into_inner();
        assert_eq!((last.entries.len(), last.next_token.as_str()), (1, ""));
        drop(plugin);
        driver.stop().await;
    });
}
