//! The RuntimeService of CRI: one file per RPC does the work, this one is the door.
//!
//! What changes something runs on a task of its own, so that a caller who goes away leaves nothing half-done.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use orlop_proto::cri;
use orlop_proto::cri::runtime_service_server::RuntimeService;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::error::RpcError;
use crate::events::EventStream;
use crate::server::Server;
use crate::{
    checkpoint, container_create, container_exec, container_list, container_remove, container_reopen_log,
    container_start, container_stats, container_status, container_stop, container_update, metric_table, runtime_status,
    sandbox_list, sandbox_metrics, sandbox_remove, sandbox_run, sandbox_stats, sandbox_status, sandbox_stop,
    sandbox_update, stream_urls, traces,
};

/// The RuntimeService on a server.
#[derive(Clone)]
pub(crate) struct RuntimeRpc {
    pub(crate) server: Arc<Server>,
    pub(crate) cancel: CancellationToken,
}

/// Objects in one message of a stream.
const PART: usize = 128;

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Finishes what was begun, whoever waits for it.
async fn finish<T: Send + 'static>(work: impl Future<Output = Result<T, RpcError>> + Send + 'static) -> Answer<T> {
    let done = tokio::spawn(traces::carry(work)).await.map_err(|error| Status::from(RpcError::Task(error)))?;
    Ok(Response::new(done?))
}

fn items<T: Send + 'static>(all: Vec<T>) -> Items<T> {
    Box::pin(futures::stream::iter(all).map(Ok))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeRpc {
    async fn version(&self, request: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(runtime_status::version(&request.into_inner())?))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        Ok(Response::new(runtime_status::status(&self.server, request.into_inner()).await))
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        Ok(Response::new(runtime_status::config(&self.server)))
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        finish(sandbox_run::run(self.server.clone(), request.into_inner())).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        finish(sandbox_stop::stop(self.server.clone(), request.into_inner())).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        finish(sandbox_remove::remove(self.server.clone(), request.into_inner())).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        Ok(Response::new(sandbox_status::status(&self.server, &request.into_inner())?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let items = sandbox_list::list(&self.server, request.into_inner().filter);
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        finish(container_create::create(self.server.clone(), request.into_inner())).await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        finish(container_start::start(self.server.clone(), request.into_inner())).await
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        finish(container_stop::stop(self.server.clone(), request.into_inner())).await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        finish(container_remove::remove(self.server.clone(), request.into_inner())).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        finish(container_reopen_log::reopen(self.server.clone(), request.into_inner())).await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        Ok(Response::new(container_status::status(&self.server, &request.into_inner())?))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let containers = container_list::list(&self.server, request.into_inner().filter);
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    /// Not on a task of its own: when the caller goes away the command is killed.
    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        Ok(Response::new(container_exec::exec_sync(self.server.clone(), request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        Ok(Response::new(stream_urls::exec(&self.server, request.into_inner())?))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        Ok(Response::new(stream_urls::attach(&self.server, &request.into_inner())?))
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        Ok(Response::new(stream_urls::port_forward(&self.server, &request.into_inner())?))
    }

    type GetContainerEventsStream = EventStream;

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(self.server.events.follow(self.cancel.clone())))
    }

    type StreamPodSandboxesStream = Items<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let all = sandbox_list::list(&self.server, request.into_inner().filter);
        let part = |part: &[_]| cri::StreamPodSandboxesResponse { pod_sandboxes: part.to_vec() };
        Ok(Response::new(items(all.chunks(PART).map(part).collect())))
    }

    type StreamContainersStream = Items<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let all = container_list::list(&self.server, request.into_inner().filter);
        let part = |part: &[_]| cri::StreamContainersResponse { containers: part.to_vec() };
        Ok(Response::new(items(all.chunks(PART).map(part).collect())))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        Ok(Response::new(container_stats::one(self.server.clone(), request.into_inner()).await?))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let stats = container_stats::list(&self.server, request.into_inner().filter).await;
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        Ok(Response::new(sandbox_stats::one(self.server.clone(), request.into_inner()).await?))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let stats = sandbox_stats::list(&self.server, request.into_inner().filter).await;
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Ok(Response::new(metric_table::list()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        let pod_metrics = sandbox_metrics::list(&self.server).await;
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        finish(container_update::update(self.server.clone(), request.into_inner())).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        finish(sandbox_update::update(self.server.clone(), request.into_inner())).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        Ok(Response::new(runtime_status::update_config(request.into_inner())?))
    }

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        finish(checkpoint::checkpoint(self.server.clone(), request.into_inner())).await
    }

    type StreamContainerStatsStream = Items<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let all = container_stats::list(&self.server, request.into_inner().filter).await;
        let part = |part: &[_]| cri::StreamContainerStatsResponse { container_stats: part.to_vec() };
        Ok(Response::new(items(all.chunks(PART).map(part).collect())))
    }

    type StreamPodSandboxStatsStream = Items<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let all = sandbox_stats::list(&self.server, request.into_inner().filter).await;
        let part = |part: &[_]| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats: part.to_vec() };
        Ok(Response::new(items(all.chunks(PART).map(part).collect())))
    }

    type StreamPodSandboxMetricsStream = Items<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = sandbox_metrics::list(&self.server).await;
        // Each pod has dozens of metrics per container.
        let part = |part: &[_]| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics: part.to_vec() };
        Ok(Response::new(items(all.chunks(PART / 8).map(part).collect())))
    }
}
