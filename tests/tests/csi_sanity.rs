//! The CSI driver before csi-sanity, the conformance test of the CSI community.

use std::process::Command;
use std::time::{Duration, Instant};

use orlop_csi::{CsiConfig, serve};
use orlop_tests::place::{foreign, private_mounts};
use tokio_util::sync::CancellationToken;

/// How long all specs may take.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn csi_sanity_finds_nothing() {
    let program = foreign("csi-sanity");
    private_mounts();
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("kubelet");
    std::fs::create_dir_all(&root).unwrap();
    let config = CsiConfig::new(&root, place.path().join("data"), "sanity-node");
    // The driver's threads are born in this thread's mount namespace, and so is csi-sanity.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let driver = runtime.spawn(serve(config.clone(), cancel.clone()));
    let started = Instant::now();
    while !config.registration_socket().exists() {
        assert!(!driver.is_finished() && started.elapsed() < DEADLINE, "the driver did not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = Command::new(program)
        .arg(format!("--csi.endpoint=unix://{}", config.socket.display()))
        .arg(format!("--csi.mountdir={}", root.join("target").display()))
        .arg(format!("--csi.stagingdir={}", root.join("staging").display()))
        .arg(format!("--csi.testvolumesize={}", 16 << 20))
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.timeout={}s", DEADLINE.as_secs()))
        .output()
        .expect("run csi-sanity");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "csi-sanity:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    let ran = text.lines().find(|line| line.starts_with("Ran ")).unwrap_or_default();
    let count: u32 = ran.split(' ').nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
    assert!(count >= 42, "csi-sanity has skipped too much: {ran:?}");
    cancel.cancel();
    runtime.block_on(driver).unwrap().unwrap();
    let mounted = orlop_kernel::mount::mounts_below(place.path()).unwrap();
    assert!(mounted.is_empty(), "left mounted: {mounted:?}");
    let left: Vec<_> = std::fs::read_dir(place.path().join("data/volumes")).unwrap().flatten().collect();
    assert!(left.is_empty(), "left volumes: {left:?}");
}
