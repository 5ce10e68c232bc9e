//! `crictl checkpoint`: a running container as an archive, by CRIU where that can work; else what is said about it.
//!
//! On a kernel on which CRIU works (the guest's is one) the archive is decoded by `crit` and brought back to life by
//! `criu restore`; elsewhere the same test looks at the refusal.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_tests::world::{Daemon, World, read, refuse, run, until};
use serde_json::{Value, json};

/// A world with a CRI server, an image and a container that counts.
struct Counter {
    /// Ends first: the world takes down what is left of the pod, which it can't beside a server.
    _daemon: Daemon,
    world: World,
    sandbox: String,
    id: String,
}

impl Counter {
    /// `path` goes before the folders in which the server looks for programs.
    fn start(path: Option<&Path>) -> Counter {
        let world = World::new();
        let mut command = world.orlop();
        command.arg("cri");
        if let Some(path) = path {
            command.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
        }
        let daemon = Daemon::start(command, world.folder().join("cri.log"));
        until("the socket is there", || world.socket().exists().then_some(()));
        world.load_image();
        let volume = world.folder().join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        let script = "n=0; while true; do n=$((n+1)); echo $n > /count; echo $n; sleep 0.2; done";
        let pod = write(
            &world,
            "pod",
            &json!({
                "metadata": {"name": "pod", "namespace": "default", "uid": "u", "attempt": 0},
                "log_directory": world.folder().join("logs"),
                "linux": {"cgroup_parent": format!("/orlop-test-{}/counter", std::process::id())},
            }),
        );
        let container = write(
            &world,
            "container",
            &json!({
                "metadata": {"name": "counter"},
                "image": {"image": "localhost/test:1"},
                "command": ["sh", "-c", script],
                "log_path": "counter.log",
                "mounts": [{"container_path": "/volume", "host_path": volume}],
                "linux": {"security_context": {
                    "namespace_options": {"pid": 1},
                    "masked_paths": ["/proc/acpi", "/proc/kcore", "/sys/firmware"],
                    "readonly_paths": ["/proc/sys", "/proc/bus"],
                }},
            }),
        );
        let sandbox = read(world.crictl().args(["runp", &pod]));
        let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
        run(world.crictl().args(["start", &id]));
        let counter = Counter { _daemon: daemon, world, sandbox, id };
        until("it counts", || counter.logs().contains('3').then_some(()));
        counter
    }

    fn logs(&self) -> String {
        read(self.world.crictl().args(["logs", &self.id]))
    }

    fn checkpoint(&self, file: &Path) -> Command {
        let mut command = self.world.crictl();
        command.args(["--timeout", "300s", "checkpoint"]).arg(format!("--export={}", file.display())).arg(&self.id);
        command
    }

    fn status(&self) -> Value {
        serde_json::from_str(&read(self.world.crictl().args(["inspect", &self.id]))).unwrap()
    }

    /// The container runs and goes on counting, and nothing is left of what failed.
    fn goes_on(&self, folder: &Path, pid: &Value) {
        let status = self.status();
        assert_eq!((&status["status"]["state"], &status["info"]["pid"]), (&json!("CONTAINER_RUNNING"), pid));
        let before = self.logs().lines().count();
        until("it counts on", || (self.logs().lines().count() > before + 2).then_some(()));
        let state = self.world.root.join("state/cri/checkpoints");
        until("no images are left", || names(&state).is_empty().then_some(()));
        assert!(names(folder).iter().all(|name| !name.starts_with('.')), "{:?}", names(folder));
    }
}

fn write(world: &World, name: &str, value: &Value) -> String {
    let path = world.folder().join(format!("{name}.json"));
    std::fs::write(&path, value.to_string()).unwrap();
    path.display().to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn unpack(archive: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder));
}

fn parse(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_running_container_is_saved_and_does_not_notice() {
    let counter = Counter::start(None);
    let folder = counter.world.folder().join("checkpoints");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("counter.tar");
    let pid = counter.status()["info"]["pid"].clone();
    let words = match Command::new("criu").arg("check").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => "install the package criu".to_string(),
        Err(error) => panic!("run criu: {error}"),
        Ok(output) if output.status.success() => {
            run(&mut counter.checkpoint(&file));
            counter.goes_on(&folder, &pid);
            look_into(&counter, &file);
            return;
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.lines().last().and_then(|line| line.split_once("): ")).expect("an error of criu").1.to_string()
        }
    };
    let said = refuse(&mut counter.checkpoint(&file));
    assert!(said.contains("FailedPrecondition") && said.contains(&words), "{said}");
    assert_eq!(names(&folder), Vec::<String>::new());
    counter.goes_on(&folder, &pid);
}

/// The archive has what is wanted, and its container lives again.
fn look_into(counter: &Counter, file: &Path) {
    let place = counter.world.folder().join("unpacked");
    unpack(file, &place);
    for name in
        ["config.dump", "spec.dump", "status.dump", "dump.log", "stats-dump", "rootfs-diff.tar", "container.log"]
    {
        assert!(place.join(name).is_file(), "{name} is missing: {:?}", names(&place));
    }
    let config = parse(&place.join("config.dump"));
    assert_eq!(
        (config["id"].as_str(), config["rootfsImageName"].as_str()),
        (Some(counter.id.as_str()), Some("localhost/test:1"))
    );
    assert!(config["checkpointedTime"].as_str() > config["createdTime"].as_str(), "{config}");
    let spec = parse(&place.join("spec.dump"));
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-name"], "counter");
    assert_eq!(spec["process"]["args"][0], "sh");
    assert_eq!(parse(&place.join("status.dump"))["metadata"]["name"], "counter");
    let images = place.join("checkpoint");
    let tree = read(Command::new("crit").arg("show").arg(images.join("pstree.img")));
    let tree: Value = serde_json::from_str(&tree).unwrap();
    assert_eq!((tree["magic"].as_str(), tree["entries"][0]["pid"].as_i64()), (Some("PSTREE"), Some(1)), "{tree}");
    unpack(&place.join("rootfs-diff.tar"), &place.join("diff"));
    let count = number(&place.join("diff/count")).expect("a number in the diff");
    assert!(count >= 3);
    run(counter.world.crictl().args(["rmp", "-f", &counter.sandbox]));
    restore(counter, &place, &spec, count);
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Lets `criu restore` bring the container back on its image and its files: it goes on where it was.
fn restore(counter: &Counter, place: &Path, spec: &Value, count: u64) {
    let world = &counter.world;
    let (root, layer, work) = (place.join("root"), place.join("layer"), place.join("work"));
    for folder in [&root, &layer, &work] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let archive = world.folder().join("test.tar");
    let image = world.folder().join("image");
    unpack(&archive, &image);
    let manifest = blob(&image, &parse(&image.join("index.json"))["manifests"][0]);
    for one in parse(&manifest)["layers"].as_array().unwrap() {
        unpack(&blob(&image, one), &layer);
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", layer.display(), place.join("diff").display(), work.display());
    run(world.command("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root));
    run(world.command("mount").arg("--make-private").arg(&root));
    let mut command = world.command("criu");
    command.args(["restore", "--restore-detached", "--manage-cgroups=ignore", "--tcp-established", "--ext-unix-sk"]);
    command.args(["--file-locks", "--log-file", "restore.log", "--pidfile"]).arg(place.join("pid"));
    command.arg("--images-dir").arg(place.join("checkpoint")).arg("--work-dir").arg(place).arg("--root").arg(&root);
    // What was handed in is handed in again: its streams, its network, its mounts.
    let mut kept: Vec<OwnedFd> = Vec::new();
    let network = std::fs::File::open("/proc/self/ns/net").unwrap();
    let mut inherit = vec![("extRootNetNS".to_string(), OwnedFd::from(network))];
    for pipe in pipes(&place.join("checkpoint")) {
        let output = std::fs::File::options().create(true).append(true).open(place.join("output")).unwrap();
        inherit.push((format!("pipe:[{pipe}]"), output.into()));
    }
    for (name, fd) in inherit {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
        command.args(["--inherit-fd", &format!("fd[{}]:{name}", fd.as_raw_fd())]);
        kept.push(fd);
    }
    let sources: BTreeMap<&str, &str> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["type"] == "bind")
        .map(|entry| (entry["destination"].as_str().unwrap(), entry["source"].as_str().unwrap()))
        .collect();
    for (destination, source) in sources {
        // Files and memory of the pod went with it; anything of their kind will do.
        let source = match Path::new(source) {
            path if path.is_dir() => path.to_path_buf(),
            path if path.is_file() => path.to_path_buf(),
            _ if destination == "/dev/shm" => world.folder().join("volume"),
            _ => archive.clone(),
        };
        command.args(["--external", &format!("mnt[{destination}]:{}", source.display())]);
    }
    let output = command.output().unwrap();
    drop(kept);
    let log = std::fs::read_to_string(place.join("restore.log")).unwrap_or_default();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    assert!(output.status.success(), "{errors:?}");
    let pid = std::fs::read_to_string(place.join("pid")).unwrap();
    let ends = End(pid.trim().to_string());
    until("the restored one counts on", || number(&place.join("diff/count")).filter(|now| *now > count + 2));
    drop(ends);
    until("it is gone", || (!Path::new("/proc").join(pid.trim()).exists()).then_some(()));
    run(world.command("umount").arg("--lazy").arg(&root));
}

/// A process that ends with the test.
struct End(String);

impl Drop for End {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", &self.0]).status();
    }
}

/// The file of a blob of an image layout.
fn blob(image: &Path, descriptor: &Value) -> PathBuf {
    image.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

/// Numbers of the pipes that the saved container writes to.
fn pipes(images: &Path) -> Vec<u64> {
    let files = read(Command::new("crit").arg("show").arg(images.join("files.img")));
    let files: Value = serde_json::from_str(&files).unwrap();
    let mut all: Vec<u64> =
        files["entries"].as_array().unwrap().iter().filter_map(|entry| entry["pipe"]["pipe_id"].as_u64()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A program in the place of CRIU.
fn pretend(folder: &Path, script: &str) {
    let text = folder.join("script");
    std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    run(Command::new("install").args(["-m", "755"]).arg(&text).arg(folder.join("criu")));
}

#[test]
fn what_fails_is_told_and_leaves_nothing() {
    let programs = tempfile::tempdir().unwrap();
    pretend(programs.path(), "exit 0");
    let counter = Counter::start(Some(programs.path()));
    let pid = counter.status()["info"]["pid"].clone();
    let folder = counter.world.folder().join("checkpoints");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("counter.tar");
    let log = "while [ $# -gt 0 ]; do [ $1 = --work-dir ] && cd $2; shift; done";
    for (script, words) in [
        (
            "echo 'Error (criu/a.c:1): no such kernel' >&2; exit 1".to_string(),
            &["FailedPrecondition", "no such kernel"][..],
        ),
        (
            format!(
                "[ $1 = check ] && exit 0; {log}; echo '(0.1) Error (criu/m.c:9): a mount is odd' > dump.log; exit 1"
            ),
            &["CRIU: a mount is odd", "default/pod/counter"],
        ),
        ("[ $1 = check ] && exit 0; exit 3".to_string(), &["exit status: 3"]),
        // It says that all is well, and has written nothing.
        ("exit 0".to_string(), &["dump.log"]),
    ] {
        pretend(programs.path(), &script);
        let said = refuse(&mut counter.checkpoint(&file));
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(names(&folder), Vec::<String>::new());
        counter.goes_on(&folder, &pid);
    }
    pretend(
        programs.path(),
        &format!("[ $1 = check ] && exit 0; {log}; echo words > dump.log; echo figures > stats-dump"),
    );
    for (location, words) in
        [("relative.tar", "location"), ("/no/such/folder/a.tar", "/no/such/folder/a.tar"), ("/tmp/../a", "location")]
    {
        let said = refuse(&mut counter.checkpoint(Path::new(location)));
        assert!(said.contains(words), "{said}");
    }
    run(&mut counter.checkpoint(&file));
    assert_eq!(names(&folder), ["counter.tar"]);
    counter.goes_on(&folder, &pid);
    run(counter.world.crictl().args(["stop", "-t", "0", &counter.id]));
    let said = refuse(&mut counter.checkpoint(&file));
    assert!(said.contains("exited") && said.contains("running"), "{said}");
    run(counter.world.crictl().args(["rmp", "-f", &counter.sandbox]));
}
