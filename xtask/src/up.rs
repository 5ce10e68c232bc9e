//! `cargo xtask up`: from nothing to a page served by a pod.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::packages::as_root;
use crate::programs;
use crate::workspace::{root as workspace_root, say};

/// How long the node may take to say that it is ready.
const READY_SECONDS: u64 = 60;

/// Builds, starts the node, loads the sample, applies it, fetches its page and says what to try next.
pub fn run(root: Option<&Path>) -> Result<()> {
    let began = Instant::now();
    let programs = programs::build()?;
    let orlop = programs.join("orlop");
    let built = began.elapsed();

    start(&orlop, root)?;
    say("loading the sample image");
    let archive = std::env::temp_dir().join(format!("orlop-hello-{}.tar", std::process::id()));
    let loaded = load_sample(&orlop, &programs, root, &archive);
    let _ = std::fs::remove_file(&archive);
    loaded?;

    say("applying config/examples/hello.yaml");
    let manifest = workspace_root().join("config/examples/hello.yaml");
    run_orlop(&orlop, root, |orlop| orlop.arg("apply").arg("--filename").arg(&manifest))?;
    run_orlop(&orlop, root, |orlop| orlop.args(["wait", "hello", "--timeout-seconds", "60"]))?;

    let address = read_orlop(&orlop, root, &["get", "pod", "hello", "--pod-ip"])?;
    let page = fetch(address.trim(), 8080)?;
    say(format!("the page of the pod, from http://{}:8080/", address.trim()));
    println!("{page}");
    run_orlop(&orlop, root, |orlop| orlop.args(["get", "pods"]))?;

    let kubeconfig = read_orlop(&orlop, root, &["paths", "kubeconfig"])?;
    let socket = read_orlop(&orlop, root, &["paths", "cri-socket"])?;
    let (kubeconfig, socket) = (kubeconfig.trim(), socket.trim());
    let down = root.map(|dir| format!(" --root {}", dir.display())).unwrap_or_default();
    println!(
        "\nkubeconfig: {kubeconfig}\n\nTry next:\n  export KUBECONFIG={kubeconfig}\n  kubectl get pods --output wide\n  kubectl logs --follow hello\n  crictl --runtime-endpoint unix://{socket} ps\n  cargo xtask down{down}\n"
    );
    println!("built in {:.0} s, up in {:.1} s", built.as_secs_f64(), (began.elapsed() - built).as_secs_f64());
    Ok(())
}

/// Starts `orlop up` in the background and waits until it says that the node is ready.
fn start(orlop: &Path, root: Option<&Path>) -> Result<()> {
    say("starting the node");
    let mut command = as_root(&orlop.to_string_lossy());
    command.args(["up", "--detach"]);
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start orlop up")?;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("    {spinner} {msg} ({elapsed})")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let lines = BufReader::new(child.stdout.take().context("output of orlop up")?).lines();
    let began = Instant::now();
    for line in lines {
        let line = line.context("read what orlop up says")?;
        bar.println(format!("    {line}"));
        bar.set_message(line);
        if began.elapsed() > Duration::from_secs(READY_SECONDS) {
            bail!("the node was not ready within {READY_SECONDS} s");
        }
    }
    bar.finish_and_clear();
    let status = child.wait().context("wait for orlop up")?;
    if !status.success() {
        bail!("orlop up did not become ready ({status}); see the lines above");
    }
    Ok(())
}

/// Makes the sample's image from the program built here and loads it: no registry needed.
fn load_sample(orlop: &Path, programs: &Path, root: Option<&Path>, archive: &Path) -> Result<()> {
    let hello = format!("{}:/hello", programs.join("orlop-hello").display());
    run_orlop(orlop, root, |orlop| {
        orlop
            .args(["image", "build", "--file", &hello, "--entrypoint", "/hello", "--output"])
            .arg(archive)
            .arg("localhost/hello:1")
    })?;
    run_orlop(orlop, root, |orlop| orlop.args(["image", "load"]).arg(archive))
}

/// Runs `orlop` with the instance's root.
fn run_orlop(orlop: &Path, root: Option<&Path>, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let mut command = as_root(&orlop.to_string_lossy());
    arguments(&mut command);
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    crate::workspace::run(&mut command)
}

/// Runs `orlop` and returns what it prints.
fn read_orlop(orlop: &Path, root: Option<&Path>, arguments: &[&str]) -> Result<String> {
    let mut command = as_root(&orlop.to_string_lossy());
    command.args(arguments);
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("run orlop {}", arguments.join(" ")))?;
    if !output.status.success() {
        bail!("orlop {} ended with {}", arguments.join(" "), output.status);
    }
    String::from_utf8(output.stdout).context("output in UTF-8")
}

/// Fetches a page by plain HTTP.
fn fetch(address: &str, port: u16) -> Result<String> {
    let address = format!("{address}:{port}").parse().with_context(|| format!("the pod's address {address:?}"))?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer).with_context(|| format!("read the page of {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{address} answered {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_string())
}
