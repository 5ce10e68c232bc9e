//! Pod up, pod down, exec, memory and idle CPU of `orlop cri` beside containerd and runc, driven by the same requests,
//! and the floor: what the kernel alone takes for the same processes. Run by `cargo xtask bench pod`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use orlop_proto::cri;
use orlop_proto::cri::image_service_client::ImageServiceClient;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use orlop_tests::place::{debian, foreign, programs};
use orlop_tests::world::{Daemon, World, run, until};
use tonic::transport::{Channel, Endpoint};

/// Pods that are made one after the other.
const ROUNDS: usize = 20;
/// Pods that stand when memory and idle CPU are measured.
const STANDING: usize = 10;
/// How long idle CPU is measured.
const IDLE: Duration = Duration::from_secs(10);
/// The registry of both, on the world's loopback.
const REGISTRY: &str = "127.0.0.1:5000";

/// What was measured of one runtime.
#[derive(Default)]
struct Figures {
    up: Vec<f64>,
    down: Vec<f64>,
    exec: Vec<f64>,
    /// KiB of proportional memory per pod: shim and pause.
    pod_memory: f64,
    /// KiB of the daemon itself.
    daemon_memory: f64,
    /// Milliseconds of CPU per second with standing pods.
    idle: f64,
}

struct Runtime {
    client: RuntimeServiceClient<Channel>,
    _daemons: Vec<Daemon>,
    /// What the command line of its processes contains.
    marks: Vec<String>,
    daemon: u32,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (orlop, containerd) = runtime.block_on(async {
        let orlop = measure(start_orlop).await;
        (orlop, measure(start_containerd).await)
    });
    let floor = floor();
    print(&orlop, &containerd, &floor);
}

async fn measure<F: Future<Output = Runtime>>(start: impl FnOnce(PathBuf) -> F) -> Figures {
    let world = Box::leak(Box::new(World::new()));
    WORLD.with(|slot| slot.set(Some(world)));
    let mut runtime = start(world.folder().to_path_buf()).await;
    let mut figures = Figures::default();
    // The first one fills caches and is not counted.
    for round in 0..=ROUNDS {
        let (began, name) = (Instant::now(), format!("round-{round}"));
        let (sandbox, container) = up(&mut runtime.client, &name).await;
        let up_time = began.elapsed();
        let began = Instant::now();
        let request = cri::ExecSyncRequest { container_id: container, cmd: vec!["/bin/true".into()], timeout: 10 };
        let answer = runtime.client.exec_sync(request).await.expect("exec").into_inner();
        assert_eq!(answer.exit_code, 0);
        let exec_time = began.elapsed();
        let began = Instant::now();
        down(&mut runtime.client, &sandbox).await;
        if round > 0 {
            figures.up.push(up_time.as_secs_f64() * 1e3);
            figures.exec.push(exec_time.as_secs_f64() * 1e3);
            figures.down.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let mut standing = Vec::new();
    for number in 0..STANDING {
        standing.push(up(&mut runtime.client, &format!("standing-{number}")).await.0);
    }
    let pids = processes(&runtime.marks);
    let others: Vec<u32> = pids.iter().copied().filter(|pid| *pid != runtime.daemon).collect();
    figures.pod_memory = others.iter().map(|pid| memory(*pid)).sum::<f64>() / STANDING as f64;
    figures.daemon_memory = memory(runtime.daemon);
    let before: u64 = pids.iter().map(|pid| ticks(*pid)).sum();
    tokio::time::sleep(IDLE).await;
    let after: u64 = pids.iter().map(|pid| ticks(*pid)).sum();
    // A tick is 10 ms.
    figures.idle = (after - before) as f64 * 10.0 / IDLE.as_secs_f64();
    for sandbox in standing {
        down(&mut runtime.client, &sandbox).await;
    }
    figures
}

thread_local! {
    static WORLD: std::cell::Cell<Option<&'static World>> = const { std::cell::Cell::new(None) };
}

fn world() -> &'static World {
    WORLD.with(|slot| slot.get().expect("a world"))
}

async fn start_orlop(folder: PathBuf) -> Runtime {
    let world = world();
    let mut command = world.orlop();
    command.arg("cri").env("RUST_LOG", "warn");
    let daemon = Daemon::start(command, folder.join("cri.log"));
    until("the socket is there", || world.socket().exists().then_some(()));
    let registry = push_image(world);
    let client = connect(world.socket()).await;
    let marks = vec![world.root.display().to_string()];
    let pid = daemon.pid();
    Runtime { client, _daemons: vec![registry, daemon], marks, daemon: pid }
}

async fn start_containerd(folder: PathBuf) -> Runtime {
    let world = world();
    let registry = push_image(world);
    let cni = foreign("containerd").parent().unwrap().parent().unwrap().join("cni");
    let (conf, socket) = (folder.join("net.d"), folder.join("containerd.sock"));
    std::fs::create_dir_all(&conf).unwrap();
    // The same network as ours, with upstream's plugins.
    std::fs::write(
        conf.join("10.conflist"),
        format!(
            r#"{{"cniVersion":"1.0.0","name":"bench","plugins":[{{"type":"bridge","bridge":"bench0","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","hairpinMode":true,"ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.66.0.0/16"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},{{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
            folder.join("leases").display()
        ),
    )
    .unwrap();
    let config = folder.join("containerd.toml");
    let path = |path: PathBuf| path.display().to_string();
    std::fs::write(
        &config,
        format!(
            r#"version = 3
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{REGISTRY}/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{cni}"]
conf_dir = "{conf}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
            root = path(folder.join("containerd-root")),
            state = path(folder.join("containerd-state")),
            socket = path(socket.clone()),
            cni = path(cni),
            conf = path(conf),
            runc = path(foreign("runc")),
        ),
    )
    .unwrap();
    let programs = foreign("containerd-shim-runc-v2").parent().unwrap().display().to_string();
    let mut command = world.command("env");
    command.arg(format!("PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin")).arg(foreign("containerd"));
    command.arg("--config").arg(&config).arg("--log-level=error");
    let daemon = Daemon::start(command, folder.join("containerd.log"));
    until("the socket is there", || socket.exists().then_some(()));
    let client = connect(socket).await;
    let marks = vec![folder.display().to_string(), "containerd-shim-runc-v2".into(), "/pause".into()];
    let pid = daemon.pid();
    Runtime { client, _daemons: vec![registry, daemon], marks, daemon: pid }
}

/// A registry with the image of the containers and that of the peer's sandboxes.
fn push_image(world: &World) -> Daemon {
    let folder = world.folder();
    let config = folder.join("registry.yml");
    let storage = folder.join("registry").display().to_string();
    std::fs::write(
        &config,
        format!("version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{REGISTRY}'}}\n"),
    )
    .unwrap();
    let mut command = world.command(debian("docker-registry", "docker-registry"));
    command.arg("serve").arg(&config);
    let registry = Daemon::start(command, folder.join("registry.log"));
    until("the registry answers", || {
        world
            .command("curl")
            .args(["-sf", &format!("http://{REGISTRY}/v2/")])
            .output()
            .unwrap()
            .status
            .success()
            .then_some(())
    });
    let busybox = debian("busybox", "busybox-static").display().to_string();
    let pause = programs().join("orlop-pause").display().to_string();
    for (name, files, entry) in [
        ("bench", vec![format!("{busybox}:/bin/sleep"), format!("{busybox}:/bin/true")], "/bin/sleep"),
        ("pause", vec![format!("{pause}:/pause")], "/pause"),
    ] {
        let archive = folder.join(format!("{name}.tar")).display().to_string();
        let mut build = world.orlop();
        build.args(["image", "build", "--entrypoint", entry, "--output", &archive]);
        files.iter().for_each(|file| {
            build.args(["--file", file]);
        });
        run(build.arg(format!("{REGISTRY}/{name}:1")));
        let skopeo = debian("skopeo", "skopeo");
        let target = format!("docker://{REGISTRY}/{name}:1");
        run(world.command(skopeo).args([
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            &format!("oci-archive:{archive}"),
            &target,
        ]));
    }
    registry
}

async fn connect(socket: PathBuf) -> RuntimeServiceClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.expect("connect to the runtime");
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let deadline = Instant::now() + Duration::from_secs(30);
    while runtime.version(cri::VersionRequest::default()).await.is_err() {
        assert!(Instant::now() < deadline, "the runtime gives no answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let image = Some(cri::ImageSpec { image: format!("{REGISTRY}/bench:1"), ..Default::default() });
    let pull = cri::PullImageRequest { image, ..Default::default() };
    ImageServiceClient::new(channel).pull_image(pull).await.expect("pull the image");
    runtime
}

async fn up(client: &mut RuntimeServiceClient<Channel>, name: &str) -> (String, String) {
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "bench".into(),
            attempt: 0,
        }),
        log_directory: world().folder().join("logs").join(name).display().to_string(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/orlop-bench-{}/{name}", std::process::id()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let run = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = client.run_pod_sandbox(run).await.expect("run a sandbox").into_inner().pod_sandbox_id;
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: format!("{REGISTRY}/bench:1"), ..Default::default() }),
        args: vec!["3600".into()],
        log_path: "c.log".into(),
        ..Default::default()
    };
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let container = client.create_container(create).await.expect("create a container").into_inner().container_id;
    let start = cri::StartContainerRequest { container_id: container.clone() };
    client.start_container(start).await.expect("start a container");
    (sandbox, container)
}

async fn down(client: &mut RuntimeServiceClient<Channel>, sandbox: &str) {
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.into() };
    client.stop_pod_sandbox(stop).await.expect("stop a sandbox");
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() };
    client.remove_pod_sandbox(remove).await.expect("remove a sandbox");
}

/// Processes of a runtime: by a word in their command line, without the workload.
fn processes(marks: &[String]) -> BTreeSet<u32> {
    let own = std::process::id();
    let of = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let ours = marks.iter().any(|mark| line.contains(mark.as_str()))
            || name.trim() == "pause"
            || name.contains("orlop-pause");
        let registry = line.contains("docker-registry");
        (ours && !registry && pid != own).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// Proportional memory of a process, in KiB.
fn memory(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or_default()
}

/// CPU of a process in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    field(11) + field(12)
}

/// The kernel alone: a process in new namespaces for a pod, a process for an exec.
fn floor() -> Figures {
    let busybox = debian("busybox", "busybox-static");
    let mut figures = Figures::default();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        run(Command::new("unshare").args(["-n", "-m", "-u", "-i", "-p", "-f"]).arg(&busybox).arg("true"));
        figures.up.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        run(Command::new(&busybox).arg("true"));
        figures.exec.push(began.elapsed().as_secs_f64() * 1e3);
    }
    figures
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn print(orlop: &Figures, containerd: &Figures, floor: &Figures) {
    println!("| | orlop | containerd + runc | ratio | floor |");
    println!("|---|---|---|---|---|");
    let line = |name: &str, unit: &str, ours: f64, theirs: f64, floor: Option<f64>| {
        let ratio = if ours > 0.0 { format!("{:.1}x", theirs / ours) } else { "-".into() };
        let floor = floor.map_or("-".into(), |floor| format!("{floor:.1} {unit}"));
        println!("| {name} | {ours:.1} {unit} | {theirs:.1} {unit} | {ratio} | {floor} |");
    };
    line("pod up (median)", "ms", median(&orlop.up), median(&containerd.up), Some(median(&floor.up)));
    line("pod down (median)", "ms", median(&orlop.down), median(&containerd.down), None);
    line("exec (median)", "ms", median(&orlop.exec), median(&containerd.exec), Some(median(&floor.exec)));
    line("memory per pod (PSS)", "KiB", orlop.pod_memory, containerd.pod_memory, None);
    line("memory of the daemon (PSS)", "KiB", orlop.daemon_memory, containerd.daemon_memory, None);
    line("idle CPU with 10 pods", "ms/s", orlop.idle, containerd.idle, None);
    println!(
        "\n{ROUNDS} pods of one container each, one after the other; {STANDING} standing pods for memory and idle CPU."
    );
}
