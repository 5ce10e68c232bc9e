//! Volumes that are images: read-only views of layers, or of a path in them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use orlop_container::config::{IdMapping, Mount};
use orlop_container::protocol::{Reply, UserMappings};
use orlop_tests::shim::{ShimPod, with_pod, with_pod_of};

/// Two layers of an image, the upper one first: it hides a file of the lower one, changes another and adds a third.
fn layers(pod: &ShimPod) -> Vec<PathBuf> {
    let (lower, upper) = (pod.folder.join("artifact-lower"), pod.folder.join("artifact-upper"));
    for layer in [&lower, &upper] {
        std::fs::create_dir_all(layer.join("models/deep")).unwrap();
    }
    std::fs::write(lower.join("models/kept"), "kept").unwrap();
    std::fs::write(lower.join("models/changed"), "old").unwrap();
    std::fs::write(lower.join("models/hidden"), "hidden").unwrap();
    std::fs::write(upper.join("models/changed"), "new").unwrap();
    std::fs::write(upper.join("models/deep/added"), "added").unwrap();
    std::fs::write(upper.join("run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(upper.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("/models/deep", upper.join("latest")).unwrap();
    symlink("../../../../../../../..", upper.join("climbing")).unwrap();
    let (kind, none) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty());
    nix::sys::stat::mknod(&upper.join("models/hidden"), kind, none, 0).unwrap();
    vec![upper, lower]
}

fn view(layers: &[PathBuf], destination: &str, sub_path: Option<&str>) -> Mount {
    let list = layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
    let mut options = vec![format!("lowerdir={list}"), "ro".into()];
    options.extend(sub_path.map(|path| format!("subpath={path}")));
    Mount {
        destination: destination.into(),
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
        ..Mount::default()
    }
}

fn refused(reply: Reply) -> String {
    match reply {
        Reply::Failed { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

fn check_views(pod: &ShimPod) {
    let layers = layers(pod);
    let mut config = pod.config("c1", &["sleep", "1000"]);
    config.mounts.push(view(&layers, "/all", None));
    config.mounts.push(view(&layers[1..], "/one", None));
    config.mounts.push(view(&layers, "/deep", Some("models/deep")));
    config.mounts.push(view(&layers, "/linked", Some("latest")));
    config.mounts.push(view(&layers, "/etc/file", Some("models/changed")));
    config.mounts.push(view(&layers, "/climbing", Some("climbing/models")));
    pod.start_container("c1", &config, |_| {});
    let shell = |line: &str| {
        let (code, text) = pod.exec("c1", &["sh", "-c", line]);
        assert_eq!(code, 0, "{line}: {text}");
        text.trim_end().to_string()
    };
    assert_eq!(shell("cd /all/models && ls && cat kept changed"), "changed\ndeep\nkept\nkeptnew");
    assert_eq!(shell("cat /one/models/changed /one/models/hidden; ls /one"), "oldhiddenmodels");
    assert_eq!(shell("cat /deep/added /linked/added; ls /deep"), "addedaddedadded");
    assert_eq!(shell("cat /etc/file"), "new");
    assert_eq!(shell("ls /climbing"), "changed\ndeep\nkept", "links stay inside of the image");
    assert_eq!(shell("/all/run.sh"), "ran");
    assert_eq!(shell("stat -c %u:%g /all /all/run.sh /one/models /deep /etc/file | sort -u"), "0:0");
    for line in [
        "touch /all/x",
        "echo x > /etc/file",
        "touch /deep/x",
        "touch /one/x",
        "rm /all/run.sh",
        "mount -o remount,rw /all",
    ] {
        let (code, text) = pod.exec("c1", &["sh", "-c", line]);
        assert_ne!(code, 0, "{line}: {text}");
    }
    let (_, table) = pod.exec("c1", &["cat", "/proc/self/mountinfo"]);
    for place in ["/all", "/one", "/deep", "/etc/file"] {
        let line =
            table.lines().find(|line| line.split(' ').nth(4) == Some(place)).unwrap_or_else(|| panic!("{table}"));
        let options = line.split(' ').nth(5).unwrap();
        assert!(options.starts_with("ro") && !options.contains("noexec"), "{line}");
    }
    for (number, (sub_path, words)) in [
        ("no/such", "image volume sub path \"no/such\" does not exist"),
        ("models/hidden", "image volume sub path \"models/hidden\" does not exist"),
        ("models/kept/x", "image volume sub path \"models/kept/x\" does not exist"),
        ("/models", "must be relative"),
        ("models/../..", "must be relative, without .."),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("r{number}");
        let mut config = pod.config(&id, &["true"]);
        config.mounts.push(view(&layers, "/v", Some(sub_path)));
        let said = refused(pod.create(&id, &config, |_| {}));
        assert!(said.contains(words) && said.contains("/v"), "{said}");
    }
    let mut config = pod.config("w1", &["true"]);
    config.mounts.push(view(&layers, "/v", None));
    config.mounts.last_mut().unwrap().options.push("upperdir=/tmp".into());
    let said = refused(pod.create("w1", &config, |_| {}));
    assert!(said.contains("upperdir=/tmp"), "{said}");
    let gone = pod.folder.join("gone");
    let mut config = pod.config("w2", &["true"]);
    config.mounts.push(view(&[layers[0].clone(), gone], "/v", None));
    assert!(refused(pod.create("w2", &config, |_| {})).contains("/v"));
}

#[test]
fn views_show_the_image_and_nothing_else() {
    with_pod("images", |pod| check_views(pod));
}

#[test]
fn views_belong_to_the_pods_users() {
    let range = vec![IdMapping { container_id: 0, host_id: 2_000_000, size: 65536 }];
    let user = UserMappings { uid_mappings: range.clone(), gid_mappings: range };
    with_pod_of("users-images", |spec| spec.user = Some(user), |pod| check_views(pod));
}
