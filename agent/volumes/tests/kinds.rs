//! Volumes of all kinds on the real kernel: contents, modes, owners, renewal, removal.

mod world;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;
use world::{World, in_own_mounts, pod};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn contents_of_the_api_are_there_change_and_go() {
    in_own_mounts(|| async {
        let world = World::new();
        world.objects.put("ConfigMap", "m", json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AP8="}}));
        world.objects.put("Secret", "s", json!({"data": {"password": "c2VjcmV0"}}));
        let pod = pod(
            "u1",
            json!({}),
            json!([
                {"name": "map", "configMap": {"name": "m", "defaultMode": 0o400}},
                {"name": "some", "configMap": {"name": "m", "items": [{"key": "a", "path": "x/y", "mode": 0o640}]}},
                {"name": "none", "secret": {"secretName": "gone", "optional": true}},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "facts", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}}
                ]}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "audience": "x"}},
                    {"configMap": {"name": "m", "items": [{"key": "b", "path": "b"}]}},
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}
                ]}}
            ]),
        );
        let mounted = world.set_up(&pod).await.unwrap();
        let path = |name: &str| mounted[name].host_path.clone();
        assert_eq!(path("map"), world.root().join("pods/u1/volumes/kubernetes.io~configmap/map"));
        assert!(mounted.values().all(|volume| volume.read_only), "contents can't be written by containers");
        assert_eq!((read(&path("map").join("a")).as_str(), mode(&path("map").join("a"))), ("1", 0o400));
        assert_eq!(std::fs::read(path("map").join("c")).unwrap(), [0, 255]);
        assert_eq!((read(&path("some").join("x/y")).as_str(), mode(&path("some").join("x/y"))), ("1", 0o640));
        assert_eq!(std::fs::read_dir(path("some")).unwrap().count(), 3);
        assert_eq!(read(&path("secret").join("password")), "secret");
        assert!(orlop_kernel::mount::is_mount_point(&path("secret")).unwrap(), "secrets are in memory");
        assert_eq!(read(&path("facts").join("labels")), "app=\"web\"");
        assert_eq!(read(&path("facts").join("memory")), "1024");
        assert_eq!(read(&path("all").join("token")), "token of pod-u1 for \"x\", 0");
        assert_eq!(read(&path("all").join("name")), "pod-u1");

        let before = std::fs::read_link(path("map").join("..data")).unwrap();
        world.set_up(&pod).await.unwrap();
        assert_eq!(std::fs::read_link(path("map").join("..data")).unwrap(), before, "nothing has changed");
        world.objects.put("ConfigMap", "m", json!({"data": {"a": "3", "b": "2"}}));
        world.objects.put("Token", "", json!(1));
        world.set_up(&pod).await.unwrap();
        assert_eq!(read(&path("map").join("a")), "3");
        assert!(!path("map").join("c").exists());
        assert_eq!(read(&path("all").join("token")), "token of pod-u1 for \"x\", 1");

        assert_eq!(orlop_agent_core::ports::Volumes::pods_on_disk(&*world.volumes), ["u1"]);
        world.tear_down("u1").await.unwrap();
        world.tear_down("u1").await.unwrap();
        assert_eq!(world.left("u1"), Vec::<std::path::PathBuf>::new());
        assert!(orlop_agent_core::ports::Volumes::pods_on_disk(&*world.volumes).is_empty());
    });
}

#[test]
fn empty_dirs_keep_what_containers_do_and_belong_to_the_group() {
    in_own_mounts(|| async {
        let mut world = World::new();
        let pod = pod(
            "u2",
            json!({"fsGroup": 4242, "runAsUser": 7}),
            json!([
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
            ]),
        );
        let mounted = world.set_up(&pod).await.unwrap();
        let (disk, memory) = (&mounted["disk"].host_path, &mounted["memory"].host_path);
        assert_eq!((mode(disk), std::fs::metadata(disk).unwrap().gid()), (0o2777, 4242));
        assert_eq!((mode(memory), std::fs::metadata(memory).unwrap().gid()), (0o2777, 4242));
        let size = rustix::fs::statvfs(memory).unwrap();
        assert_eq!(size.f_blocks * size.f_frsize, 1 << 20);
        let token = mounted["token"].host_path.join("t");
        let found = std::fs::metadata(&token).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (7, 4242, 0o640));
        std::fs::write(disk.join("file"), "mine").unwrap();
        std::fs::write(memory.join("file"), "mine").unwrap();
        std::fs::set_permissions(disk, std::fs::Permissions::from_mode(0o700)).unwrap();
        world.set_up(&pod).await.unwrap();
        world.restart();
        world.set_up(&pod).await.unwrap();
        assert_eq!((read(&disk.join("file")), read(&memory.join("file"))), ("mine".into(), "mine".into()));
        assert_eq!(mode(disk), 0o700, "what a container has set stays");

        // What hostile containers leave does not lead the removal astray.
        let outside = world.base().join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        symlink(&outside, disk.join("link")).unwrap();
        std::fs::create_dir(disk.join("deep")).unwrap();
        symlink("/", disk.join("deep/root")).unwrap();
        world.tear_down("u2").await.unwrap();
        assert!(outside.join("kept").is_dir());
        assert_eq!(world.left("u2"), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn what_is_wrong_is_named_as_the_kubelet_does() {
    in_own_mounts(|| async {
        let world = World::new();
        world.objects.put("ConfigMap", "m", json!({"data": {"a": "1"}}));
        for (volume, want) in [
            (json!({"configMap": {"name": "gone"}}), "configmap \"gone\" not found"),
            (json!({"secret": {"secretName": "gone"}}), "secret \"gone\" not found"),
            (
                json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}),
                "configmap references non-existent config key: k",
            ),
            (json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "../p"}]}}), "invalid path \"../p\""),
            (
                json!({"hostPath": {"path": "/etc/passwd", "type": "Directory"}}),
                "hostPath type check failed: /etc/passwd is not a directory",
            ),
            (json!({"emptyDir": {"medium": "Tape"}}), "emptyDir.medium \"Tape\" is not known"),
            (json!({"gitRepo": {"repository": "r"}}), "gitRepo are not served by this node"),
            (
                json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
                "clusterTrustBundle is not served",
            ),
        ] {
            let mut volume = volume;
            volume["name"] = json!("v");
            let error = world.set_up(&pod("u3", json!({}), json!([volume]))).await.unwrap_err();
            assert!(error.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{error}");
            assert!(error.contains(want), "{error}");
        }
        let waiting = world
            .set_up(&pod("u3", json!({}), json!([{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}])))
            .await
            .unwrap_err();
        assert!(waiting.contains("unmounted volumes=[v]") && waiting.contains("n/gone"), "{waiting}");
        let hostile = world.set_up(&pod("../../x", json!({}), json!([{"name": "v", "emptyDir": {}}]))).await;
        assert!(hostile.unwrap_err().contains("can't be the name of a folder"));
        world.tear_down("u3").await.unwrap();
        assert_eq!(world.left("u3"), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn a_local_volume_is_bound_and_never_removed() {
    in_own_mounts(|| async {
        let world = World::new();
        let data = world.base().join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("file"), "kept").unwrap();
        world.put_claim("c", "none", "h", "ReadWriteOnce");
        let spec = json!({"claimRef": {"uid": "claim-c"}, "local": {"path": data}});
        world.objects.put("PersistentVolume", "pv-c", json!({"metadata": {"name": "pv-c"}, "spec": spec}));
        let pod = world::pod_of_claim("u4", "c");
        let mounted = world.set_up(&pod).await.unwrap();
        world.set_up(&pod).await.unwrap();
        let folder = world.root().join("pods/u4/volumes/kubernetes.io~local-volume/pv-c");
        assert_eq!(mounted["data"].host_path, folder);
        assert_eq!(read(&folder.join("file")), "kept");
        world.tear_down("u4").await.unwrap();
        assert_eq!(read(&data.join("file")), "kept");
        assert_eq!(world.left("u4"), Vec::<std::path::PathBuf>::new());
    });
}
