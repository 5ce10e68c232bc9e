//! `CheckpointContainer`: the memory and the files of a running container as one archive, which the container does not
//! notice.
//!
//! CRIU writes its images into a folder of the server's state, and everything is packed from there: what fails or is killed
//! on the way leaves that folder at most, which the next start removes. Files of the root are read while the container goes
//! on, a moment after its memory.
//!
//! The archive has the names that users of other runtimes know: `checkpoint/` with CRIU's images, `config.dump`,
//! `spec.dump`, `status.dump`, `rootfs-diff.tar`, `dump.log`, `stats-dump` and, where there is one, `container.log`.

mod archive;
mod criu;
mod draft;
mod mounts;

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_container::config::Config;
use orlop_proto::cri;
use serde_json::{Value, json};

use crate::container::Container;
use crate::container_status::status_of;
use crate::error::{RpcError, argument, file};
use crate::server::{Server, blocking, new_id, now};
use archive::Part;
use criu::Criu;

/// How long a dump may take for which no time is given.
const DUMP_TIME: Duration = Duration::from_secs(600);
/// The longest that may be given.
const DUMP_TIME_MAX: i64 = 24 * 3600;

/// Writes the archive, or leaves nothing.
pub(crate) async fn checkpoint(
    server: Arc<Server>,
    request: cri::CheckpointContainerRequest,
) -> Result<cri::CheckpointContainerResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    let _operation = container.operation.lock().await;
    container.check_running()?;
    let (location, limit) = check(&request, &container)?;
    let work = Work::make(&folder(&server.config.state_dir)).await?;
    let dump = async {
        let criu = Criu::find().await?;
        let plan = blocking({
            let (container, images) = (container.clone(), work.place.join("checkpoint"));
            move || plan(&container, &images)
        });
        criu.dump(&container.title(), &plan.await?, &work.place).await
    };
    let late = |_| RpcError::Checkpoint { object: container.title(), reason: format!("it took longer than {limit:?}") };
    tokio::time::timeout(limit, dump).await.map_err(late).flatten()?;
    let described = describe(&container);
    let (layer, work_place) = (server.config.container_folder(&container.id).join("upper"), work.place.clone());
    let log = container.record().log_path;
    let packed = location.clone();
    blocking(move || pack(&work_place, &layer, log.as_deref(), &described, &packed)).await?;
    tracing::info!(container = container.title(), id = container.id, ?location, "checkpoint is written");
    Ok(cri::CheckpointContainerResponse {})
}

/// Removes what a server that was killed has left. Blocking.
pub(crate) fn remove_leftovers(state_dir: &Path) -> Result<(), RpcError> {
    crate::sandbox_remove::remove_folder(&folder(state_dir))
}

/// Where checkpoints are made.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("checkpoints")
}

/// Refuses what can't be had; returns where the archive goes and how long it may take.
fn check(request: &cri::CheckpointContainerRequest, container: &Container) -> Result<(PathBuf, Duration), RpcError> {
    orlop_cri_spec::check_path("location", &request.location)?;
    let location = PathBuf::from(&request.location);
    if location.file_name().is_none() || request.location.ends_with('/') {
        return Err(argument("location", "must name the file of the archive"));
    }
    if !crate::handlers::is_built_in(&container.sandbox.runtime_handler) {
        return Err(RpcError::Unsupported {
            what: "CheckpointContainer",
            reason: format!(
                "container {} is made by the runtime handler {}",
                container.id, container.sandbox.runtime_handler
            ),
        });
    }
    match request.timeout {
        0 => Ok((location, DUMP_TIME)),
        seconds @ 1..=DUMP_TIME_MAX => Ok((location, Duration::from_secs(seconds.unsigned_abs()))),
        other => Err(argument("timeout", format!("{other} is not from 0 to {DUMP_TIME_MAX} s"))),
    }
}

/// The folder of one checkpoint; it goes with this.
struct Work {
    place: PathBuf,
}

impl Work {
    async fn make(folder: &Path) -> Result<Work, RpcError> {
        let place = folder.join(&new_id()?[..16]);
        let images = place.join("checkpoint");
        let work = Work { place };
        blocking(move || {
            let mut private = std::fs::DirBuilder::new();
            private.recursive(true).mode(0o700).create(&images).map_err(file("make the folder", &images))
        })
        .await?;
        Ok(work)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let place = std::mem::take(&mut self.place);
        // As large as the container's memory: not on a thread that others need.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::sandbox_remove::remove_folder(&place) {
                tracing::warn!(
                    error = crate::error::chain(&error),
                    "what a checkpoint was made of is left until the next start"
                );
            }
        });
    }
}

/// What CRIU is told of a container. Blocking.
fn plan(container: &Container, images: &Path) -> Result<criu::Plan, RpcError> {
    let config = container.folder.join("config.json");
    let text = std::fs::read(&config).map_err(file("read", &config))?;
    let config: Config = serde_json::from_slice(&text).map_err(|error| file("read", &config)(error.into()))?;
    let pid = container.record().pid;
    let table = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let text = std::fs::read_to_string(&table).map_err(file("read", &table))?;
    let namespace = |kind: &str| -> Result<u64, RpcError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        Ok(std::fs::metadata(&path).map_err(file("look at", &path))?.ino())
    };
    Ok(criu::Plan { pid, network: namespace("net")?, images: images.into(), mounts: mounts::external(&text, &config) })
}

/// The files that tell what the container is.
fn describe(container: &Container) -> Vec<(&'static str, Value)> {
    let record = container.record();
    let time = |nanoseconds: i64| jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default().to_string();
    let config = json!({
        "id": container.id,
        "name": container.name(),
        "rootfsImage": record.image_name,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": record.image_name,
        "runtime": "orlop",
        "createdTime": time(record.created_at),
        "checkpointedTime": time(now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    });
    let status = orlop_proto::json::to_json("ContainerStatus", &status_of(container));
    let pod = container.sandbox.metadata();
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": container.metadata().name,
        "io.kubernetes.cri.image-name": record.image_name,
        "io.kubernetes.cri.sandbox-id": container.sandbox.id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
    });
    let spec = std::fs::read(container.folder.join("config.json")).unwrap_or_default();
    let mut spec: Value = serde_json::from_slice(&spec).unwrap_or_default();
    // Under these names tools look for the pod.
    spec["annotations"] = annotations;
    vec![("config.dump", config), ("spec.dump", spec), ("status.dump", status)]
}

/// Packs everything. Blocking.
fn pack(
    work: &Path,
    layer: &Path,
    log: Option<&Path>,
    described: &[(&'static str, Value)],
    location: &Path,
) -> Result<(), RpcError> {
    let diff = work.join("rootfs-diff.tar");
    let written = std::fs::File::create_new(&diff).and_then(|file| archive::write_layer(layer, file));
    written.map_err(file("pack the writable layer", layer))?;
    let mut parts: Vec<Part<'_>> = described.iter().map(|(name, value)| Part::Json(name, value)).collect();
    parts.push(Part::Folder("checkpoint", work.join("checkpoint")));
    for name in ["rootfs-diff.tar", "dump.log", "stats-dump"] {
        parts.push(Part::File(name, work.join(name)));
    }
    parts.extend(log.filter(|log| log.is_file()).map(|log| Part::File("container.log", log.into())));
    let draft = draft::Draft::open(location).map_err(file("make the archive", location))?;
    archive::write(&parts, draft.file()).and_then(|()| draft.publish()).map_err(file("write the archive", location))
}
