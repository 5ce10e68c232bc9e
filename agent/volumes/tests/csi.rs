//! Volumes of CSI drivers: the driver of this project, and one that hangs, refuses and lies.

mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_csi::CsiConfig;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use world::driver::{Mood, ScriptedDriver};
use world::{World, eventually, in_own_mounts, pod, pod_of_claim};

const NONE: Vec<PathBuf> = Vec::new();

/// A world with a scripted driver and a claim `c` of it.
fn scripted() -> (World, ScriptedDriver) {
    let world = World::new();
    let driver = ScriptedDriver::start(world.base());
    world.register("scripted", &driver.socket);
    world.objects.put("CSIDriver", "scripted", json!({"spec": {"attachRequired": false}}));
    world.put_claim("c", "scripted", "h", "ReadWriteOnce");
    (world, driver)
}

#[test]
fn data_of_the_local_driver_outlive_pods_and_agents() {
    in_own_mounts(|| async {
        let mut world = World::new();
        let config = CsiConfig::new(world.root(), world.base().join("csi"), "node-1");
        let cancel = CancellationToken::new();
        let driver = tokio::spawn(orlop_csi::serve(config.clone(), cancel.clone()));
        eventually("the driver", || config.registration_socket().exists()).await;
        world.register(&config.driver_name, &config.socket);
        world.objects.put(
            "CSIDriver",
            &config.driver_name,
            json!({"spec": {"attachRequired": false, "fsGroupPolicy": "File"}}),
        );
        let handle = create_volume(&config).await;
        world.put_claim("c", &config.driver_name, &handle, "ReadWriteOnce");
        let first =
            pod("u1", json!({"fsGroup": 4242}), json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]));
        let second = pod_of_claim("u2", "c");
        let mounted = world.set_up(&first).await.unwrap();
        let path = mounted["data"].host_path.clone();
        assert_eq!(path, world.root().join("pods/u1/volumes/kubernetes.io~csi/pv-c/mount"));
        std::fs::write(path.join("file"), "kept").unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&path).unwrap().gid(), 4242);
        let other = world.set_up(&second).await.unwrap()["data"].host_path.clone();
        assert_eq!(std::fs::read_to_string(other.join("file")).unwrap(), "kept");
        world.restart();
        world.set_up(&first).await.unwrap();
        world.tear_down("u1").await.unwrap();
        let staged = |world: &World| orlop_kernel::mount::mounts_below(&world.root().join("plugins")).unwrap().len();
        assert_eq!(staged(&world), 1, "the other pod has it");
        world.tear_down("u2").await.unwrap();
        assert_eq!((staged(&world), world.left("u2")), (0, NONE));
        let third = pod_of_claim("u3", "c");
        let path = world.set_up(&third).await.unwrap()["data"].host_path.clone();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
        world.tear_down("u3").await.unwrap();
        assert_eq!(world.left("u3"), NONE);
        cancel.cancel();
        driver.await.unwrap().unwrap();
    });
}

async fn create_volume(config: &CsiConfig) -> String {
    use orlop_proto::csi::volume_capability::access_mode::Mode;
    use orlop_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
    use orlop_proto::csi::{CreateVolumeRequest, VolumeCapability};
    let socket = config.socket.clone();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::from_std(orlop_kernel::socket::connect(&socket)?.into())?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let capability = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    };
    let request = CreateVolumeRequest { name: "c".into(), volume_capabilities: vec![capability], ..Default::default() };
    let mut client = orlop_proto::csi::controller_client::ControllerClient::new(channel);
    client.create_volume(request).await.unwrap().into_inner().volume.unwrap().volume_id
}

#[test]
fn a_driver_is_called_once_and_told_what_it_wants_to_know() {
    in_own_mounts(|| async {
        let (world, driver) = scripted();
        let spec = json!({"attachRequired": false, "podInfoOnMount": true, "tokenRequests": [{"audience": "a"}]});
        world.objects.put("CSIDriver", "scripted", json!({"spec": spec}));
        let pod = pod_of_claim("u1", "c");
        world.set_up(&pod).await.unwrap();
        world.set_up(&pod).await.unwrap();
        assert_eq!(driver.calls(), ["stage", "publish"]);
        let request = driver.script.lock().unwrap().last_publish.clone().unwrap();
        let context = |key: &str| request.volume_context.get(key).cloned().unwrap_or_default();
        assert_eq!(context("attribute"), "1");
        assert_eq!(context("csi.storage.k8s.io/pod.name"), "pod-u1");
        assert_eq!(context("csi.storage.k8s.io/serviceAccount.name"), "robot");
        assert!(context("csi.storage.k8s.io/serviceAccount.tokens").contains("token of pod-u1 for \\\"a\\\""));
        assert!(request.staging_target_path.ends_with("/globalmount"));
        // A volume that somebody has unmounted is made anew.
        orlop_kernel::mount::unmount_path(&world.root().join("pods/u1/volumes/kubernetes.io~csi/pv-c/mount")).unwrap();
        world.set_up(&pod).await.unwrap();
        assert_eq!(driver.calls(), ["stage", "publish"]);
        world.tear_down("u1").await.unwrap();
        assert_eq!((driver.calls(), world.left("u1")), (vec!["unpublish", "unstage"], NONE));
    });
}

#[test]
fn a_driver_that_hangs_delays_its_own_pod_only() {
    in_own_mounts(|| async {
        let (world, driver) = scripted();
        driver.told(|script| script.publish = Mood::Hang);
        let (slow, quick) = (pod_of_claim("u1", "c"), pod("u2", json!({}), json!([{"name": "e", "emptyDir": {}}])));
        let world = Arc::new(world);
        let (own, hanging) = (world.clone(), slow.clone());
        let waiting = tokio::spawn(async move { own.set_up(&hanging).await });
        eventually("the call", || driver.script.lock().unwrap().last_publish.is_some()).await;
        world.set_up(&quick).await.unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert!(error.contains("the driver has not answered within"), "{error}");
        // The pod is deleted while its driver hangs: the call is broken off, and what it may have done undone.
        let (own, hanging) = (world.clone(), slow.clone());
        let waiting = tokio::spawn(async move { own.set_up(&hanging).await });
        driver.calls();
        eventually("the call", || driver.script.lock().unwrap().calls.contains(&"publish")).await;
        let started = Instant::now();
        world.tear_down("u1").await.unwrap();
        assert!(started.elapsed() < Duration::from_millis(400), "the hanging call is not waited for");
        assert!(waiting.await.unwrap().unwrap_err().contains("the pod is ending"));
        assert_eq!(driver.calls()[2..], ["unpublish", "unstage"]);
        world.tear_down("u2").await.unwrap();
        assert_eq!(world.left("u1"), NONE);
    });
}

#[test]
fn refusals_leave_nothing_that_would_need_the_driver() {
    in_own_mounts(|| async {
        let (world, driver) = scripted();
        let pod = pod_of_claim("u1", "c");
        driver.told(|script| script.stage = Mood::Refuse(Code::InvalidArgument));
        let error = world.set_up(&pod).await.unwrap_err();
        assert_eq!(
            error,
            "MountVolume.MountDevice failed for volume \"pv-c\" : NodeStageVolume: rpc error: code = InvalidArgument desc = told to refuse"
        );
        world.unregister("scripted");
        world.tear_down("u1").await.unwrap();
        assert_eq!((world.left("u1"), driver.calls()), (NONE, vec!["stage"]));
        // An unclear end has to be undone, by the driver.
        world.register("scripted", &driver.socket);
        driver.told(|script| script.stage = Mood::Refuse(Code::Unavailable));
        world.set_up(&pod).await.unwrap_err();
        world.unregister("scripted");
        let error = world.tear_down("u1").await.unwrap_err();
        assert_eq!(
            error,
            "UnmountVolume.TearDown failed for volume \"pv-c\" : driver name scripted not found in the list of registered CSI drivers"
        );
        world.register("scripted", &driver.socket);
        world.tear_down("u1").await.unwrap();
        assert_eq!((driver.calls(), world.left("u1")), (vec!["stage", "unpublish", "unstage"], NONE));
        let error = world.set_up(&pod_of_claim("u2", "none")).await.unwrap_err();
        assert!(error.contains("n/none"), "{error}");
    });
}

#[test]
fn a_driver_that_lies_costs_no_data() {
    in_own_mounts(|| async {
        let (world, driver) = scripted();
        let pod = pod_of_claim("u1", "c");
        driver.told(|script| script.publish = Mood::Lie);
        let error = world.set_up(&pod).await.unwrap_err();
        assert!(error.contains("the driver reports success, but") && error.ends_with("is not there"), "{error}");
        driver.told(|script| script.publish = Mood::Obey);
        let path = world.set_up(&pod).await.unwrap()["data"].host_path.clone();
        std::fs::write(path.join("file"), "kept").unwrap();
        for mood in [Mood::Lie, Mood::Hang, Mood::Refuse(Code::Internal)] {
            driver.told(|script| script.unpublish = mood);
            let error = world.tear_down("u1").await.unwrap_err();
            assert!(error.starts_with("UnmountVolume.TearDown failed for volume \"pv-c\" : "), "{error}");
            assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
        }
        driver.told(|script| script.unpublish = Mood::Obey);
        driver.told(|script| script.unstage = Mood::Lie);
        let error = world.tear_down("u1").await.unwrap_err();
        assert!(error.contains("globalmount is still mounted"), "{error}");
        driver.told(|script| script.unstage = Mood::Obey);
        world.tear_down("u1").await.unwrap();
        assert_eq!(world.left("u1"), NONE);
        assert_eq!(std::fs::read_to_string(world.base().join("scripted/file")).unwrap(), "kept");
    });
}

#[test]
fn damage_and_crashes_are_cleaned_up() {
    in_own_mounts(|| async {
        let (mut world, mut driver) = scripted();
        let pod = pod_of_claim("u1", "c");
        world.set_up(&pod).await.unwrap();
        let folder = world.root().join("pods/u1/volumes/kubernetes.io~csi/pv-c");
        std::fs::write(folder.join("vol_data.json"), "{").unwrap();
        driver.stop();
        // The driver's name is lost: the pod's mount goes without it, the stage when the driver is back.
        world.tear_down("u1").await.unwrap();
        assert!(!folder.exists());
        driver.start_again();
        world.restart();
        let stages = world.root().join("plugins/kubernetes.io/csi/scripted");
        eventually("the sweep", || std::fs::read_dir(&stages).unwrap().count() == 0).await;
        assert_eq!(world.left("u1"), NONE);
        // A pod that was deleted while the agent was away is taken down by what is on disk.
        world.set_up(&pod).await.unwrap();
        world.restart();
        world.objects.remove("PersistentVolumeClaim", "c");
        world.objects.remove("PersistentVolume", "pv-c");
        world.tear_down("u1").await.unwrap();
        assert_eq!(world.left("u1"), NONE);
    });
}

#[test]
fn attachment_users_and_inline_volumes() {
    in_own_mounts(|| async {
        let (world, driver) = scripted();
        world.objects.put(
            "CSIDriver",
            "scripted",
            json!({"spec": {"volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
        );
        let pod_one = pod_of_claim("u1", "c");
        let error = world.set_up(&pod_one).await.unwrap_err();
        assert!(error.starts_with("MountVolume.WaitForAttach failed for volume \"pv-c\" : timed out"), "{error}");
        let name = format!("csi-{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest("hscriptednode-1")));
        let attachment = json!({
            "metadata": {"name": name}, "spec": {"attacher": "scripted", "nodeName": "node-1", "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}},
        });
        world.objects.put("VolumeAttachment", &name, attachment);
        world.put_claim("c", "scripted", "h", "ReadWriteOncePod");
        world.set_up(&pod_one).await.unwrap();
        let request = driver.script.lock().unwrap().last_publish.clone().unwrap();
        assert_eq!(request.publish_context.get("device").map(String::as_str), Some("/dev/x"));
        let error = world.set_up(&pod_of_claim("u2", "c")).await.unwrap_err();
        assert!(error.contains("ReadWriteOncePod access mode and is already in use by another pod"), "{error}");
        world.tear_down("u1").await.unwrap();
        driver.calls();
        let inline = json!([{"name": "i", "csi": {"driver": "scripted", "volumeAttributes": {"k": "v"}}}]);
        let inline = pod("u3", json!({}), inline);
        let mounted = world.set_up(&inline).await.unwrap();
        assert_eq!(mounted["i"].host_path, world.root().join("pods/u3/volumes/kubernetes.io~csi/i/mount"));
        assert_eq!(driver.calls(), ["publish"]);
        world.tear_down("u3").await.unwrap();
        assert_eq!((driver.calls(), world.left("u3")), (vec!["unpublish"], NONE));
        world.objects.remove("CSIDriver", "scripted");
        let error = world.set_up(&inline).await.unwrap_err();
        assert!(error.contains("volume mode \"Ephemeral\" not supported by driver scripted"), "{error}");
        world.tear_down("u3").await.unwrap();
    });
}
