//! A CSI driver that can be told to hang, refuse or lie.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use orlop_kernel::mount;
use orlop_proto::csi::node_server::{Node, NodeServer};
use orlop_proto::csi::node_service_capability::{Rpc, Type, rpc};
use orlop_proto::csi::*;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// What a call does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// What it should.
    #[default]
    Obey,
    /// Nothing, for ever.
    Hang,
    /// It refuses.
    Refuse(Code),
    /// It does nothing and reports success.
    Lie,
}

/// What the driver is told to do and what it has seen.
#[derive(Default)]
pub struct Script {
    pub stage: Mood,
    pub publish: Mood,
    pub unpublish: Mood,
    pub unstage: Mood,
    pub calls: Vec<&'static str>,
    pub last_publish: Option<NodePublishVolumeRequest>,
}

/// A driver that runs.
pub struct ScriptedDriver {
    pub script: Arc<Mutex<Script>>,
    pub socket: PathBuf,
    data: PathBuf,
    task: JoinHandle<()>,
}

struct Service {
    script: Arc<Mutex<Script>>,
    data: PathBuf,
}

impl ScriptedDriver {
    /// Starts a driver that stages and publishes a folder below `base`.
    pub fn start(base: &Path) -> ScriptedDriver {
        let data = base.join("scripted");
        std::fs::create_dir_all(&data).unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let socket = base.join("scripted.sock");
        let task = serve(&socket, &data, &script);
        ScriptedDriver { script, socket, data, task }
    }

    pub fn told(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.stop();
        self.task = serve(&self.socket, &self.data, &self.script);
    }
}

fn serve(socket: &Path, data: &Path, script: &Arc<Mutex<Script>>) -> JoinHandle<()> {
    let listener: std::os::unix::net::UnixListener = orlop_kernel::socket::listen(socket).unwrap().into();
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener).unwrap());
    let service = Service { script: script.clone(), data: data.to_path_buf() };
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(NodeServer::new(service))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    })
}

impl Service {
    async fn act(&self, call: &'static str, mood: fn(&Script) -> Mood) -> Result<bool, Status> {
        let mood = {
            let mut script = self.script.lock().unwrap();
            script.calls.push(call);
            mood(&script)
        };
        match mood {
            Mood::Obey => Ok(true),
            Mood::Lie => Ok(false),
            Mood::Refuse(code) => Err(Status::new(code, "told to refuse")),
            Mood::Hang => std::future::pending().await,
        }
    }

    fn bind(&self, target: &str) {
        let target = Path::new(target);
        if mount::is_mount_point(target).unwrap() {
            return;
        }
        std::fs::create_dir_all(target).unwrap();
        let place = orlop_kernel::path::open_root(target).unwrap();
        mount::attach(mount::clone_path(&self.data, false).unwrap(), place).unwrap();
    }
}

fn release(target: &str) {
    let target = Path::new(target);
    if mount::is_mount_point(target).unwrap() {
        mount::unmount_path(target).unwrap();
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        if self.act("stage", |script| script.stage).await? {
            self.bind(&request.into_inner().staging_target_path);
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        if self.act("unstage", |script| script.unstage).await? {
            release(&request.into_inner().staging_target_path);
        }
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.script.lock().unwrap().last_publish = Some(request.clone());
        if self.act("publish", |script| script.publish).await? {
            self.bind(&request.target_path);
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        if self.act("unpublish", |script| script.unpublish).await? {
            let target = request.into_inner().target_path;
            release(&target);
            let _ = std::fs::remove_dir(&target);
        }
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let stages = Type::Rpc(Rpc { r#type: rpc::Type::StageUnstageVolume.into() });
        let capabilities = vec![NodeServiceCapability { r#type: Some(stages) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: "node-1".into(), ..NodeGetInfoResponse::default() }))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("stats"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("expand"))
    }
}
