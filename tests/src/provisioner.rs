//! Volumes for the claims of a cluster that has no provisioner: what external-provisioner does, by polling.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_proto::csi::controller_client::ControllerClient;
use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop_proto::csi::{CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, Volume, VolumeCapability};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::api::Api;

/// Name of the driver.
pub const DRIVER: &str = "local.csi.orlop.dev";

/// Runs until it is dropped.
pub struct Provisioner {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Provisioner {
    /// Serves claims with the driver at this socket.
    ///
    /// # Panics
    /// When no thread can be started.
    #[must_use]
    pub fn start(api: Api, socket: PathBuf) -> Provisioner {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            while !ended.load(Ordering::Relaxed) {
                if let Err(error) = runtime.block_on(pass(&api, &socket)) {
                    eprintln!("provisioner: {error}");
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        };
        Provisioner { end, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the volumes that claims wait for and deletes those that are released.
async fn pass(api: &Api, socket: &Path) -> Result<(), String> {
    let list = |path: &str| -> Result<Vec<Value>, String> {
        let (code, list) = api.send("GET", path, None).map_err(|error| error.to_string())?;
        match list["items"].as_array() {
            Some(items) if code == 200 => Ok(items.clone()),
            _ => Err(format!("{path}: {code}")),
        }
    };
    for claim in list("/api/v1/persistentvolumeclaims")? {
        let chosen = &claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
        if claim["spec"]["volumeName"].is_string() || !chosen.is_string() {
            continue;
        }
        let volume = create(socket, &claim).await?;
        let object = volume_object(&claim, &volume);
        let (code, answer) =
            api.send("POST", "/api/v1/persistentvolumes", Some(&object)).map_err(|error| error.to_string())?;
        if !matches!(code, 201 | 409) {
            return Err(format!("the volume is refused: {code} {answer}"));
        }
    }
    for volume in list("/api/v1/persistentvolumes")? {
        if volume["status"]["phase"] != "Released" || volume["spec"]["csi"]["driver"] != DRIVER {
            continue;
        }
        let volume_id = volume["spec"]["csi"]["volumeHandle"].as_str().unwrap_or_default().to_string();
        let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
        connect(socket).await?.delete_volume(request).await.map_err(|error| error.to_string())?;
        let path = format!("/api/v1/persistentvolumes/{}", volume["metadata"]["name"].as_str().unwrap_or_default());
        api.send("DELETE", &path, None).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn create(socket: &Path, claim: &Value) -> Result<Volume, String> {
    let mount = AccessType::Mount(MountVolume::default());
    let mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    let request = CreateVolumeRequest {
        name: volume_name(claim),
        capacity_range: Some(CapacityRange { required_bytes: 64 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![VolumeCapability { access_mode: mode, access_type: Some(mount) }],
        ..CreateVolumeRequest::default()
    };
    let answer = connect(socket).await?.create_volume(request).await.map_err(|error| error.to_string())?;
    answer.into_inner().volume.ok_or_else(|| "the driver made no volume".to_string())
}

async fn connect(socket: &Path) -> Result<ControllerClient<Channel>, String> {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://driver").timeout(Duration::from_secs(10));
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())?;
    Ok(ControllerClient::new(channel))
}

fn volume_name(claim: &Value) -> String {
    format!("pvc-{}", claim["metadata"]["uid"].as_str().unwrap_or_default())
}

fn volume_object(claim: &Value, volume: &Volume) -> Value {
    let reference = json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim["metadata"]["namespace"],
        "name": claim["metadata"]["name"], "uid": claim["metadata"]["uid"],
    });
    let context: std::collections::BTreeMap<_, _> = volume.volume_context.iter().collect();
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim), "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
        "spec": {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"], "claimRef": reference,
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": claim["spec"]["storageClassName"],
            "csi": {"driver": DRIVER, "volumeHandle": volume.volume_id, "volumeAttributes": context},
        },
    })
}
