//! The client of a CRI runtime: the agent's runtime port, one CRI call per method.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use orlop_agent_core::facts::ObservedPod;
use orlop_agent_core::images::RegistryAuth;
use orlop_agent_core::labels;
use orlop_agent_core::metrics::Metrics;
use orlop_agent_core::ports::{PortFuture, StreamOptions};
use orlop_agent_core::runtime::{
    ContainerSpec, ExecOutput, ImageFact, Runtime, RuntimeError, RuntimeEvents, RuntimeFailure, RuntimeStatus,
    SandboxSpec,
};
use orlop_proto::cri;
use orlop_proto::cri::image_service_client::ImageServiceClient;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::call::{Operation, from_status, gone_is_done, within};
use crate::connect::{ConnectError, channel, socket_path};
use crate::events::EventStream;
use crate::{from_cri, to_cri};

/// Largest message that is taken, as the kubelet's client takes it.
const MAX_MESSAGE: usize = 16 << 20;
/// Status calls at the same time when listing.
const LIST_PARALLEL: usize = 16;

/// How to reach a runtime.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Endpoint of the runtime service (`unix:///run/...`).
    pub runtime_endpoint: String,
    /// Endpoint of the image service; empty for the same.
    pub image_endpoint: String,
    /// Deadline of ordinary calls; the kubelet's `runtimeRequestTimeout`, 2 min.
    pub request_timeout: Duration,
}

impl RuntimeConfig {
    /// A runtime with both services at one socket and the kubelet's deadlines.
    pub fn at(endpoint: impl Into<String>) -> RuntimeConfig {
        RuntimeConfig {
            runtime_endpoint: endpoint.into(),
            image_endpoint: String::new(),
            request_timeout: Duration::from_secs(120),
        }
    }
}

/// A CRI runtime.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    timeout: Duration,
    name: String,
    version: String,
    metrics: Arc<Metrics>,
}

type Answer<'a, T> = PortFuture<'a, Result<T, RuntimeError>>;

impl CriRuntime {
    /// Connects and asks for the version, trying for `patience` before giving up. All calls are counted in `metrics`.
    ///
    /// # Errors
    /// When the endpoint is no unix socket, or no runtime answers in time.
    pub async fn connect(
        config: &RuntimeConfig,
        patience: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<CriRuntime, ConnectError> {
        let runtime_channel = channel(socket_path(&config.runtime_endpoint)?);
        let image_channel = match config.image_endpoint.as_str() {
            "" => runtime_channel.clone(),
            other if other == config.runtime_endpoint => runtime_channel.clone(),
            other => channel(socket_path(other)?),
        };
        let runtime = RuntimeServiceClient::new(runtime_channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let images = ImageServiceClient::new(image_channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let end = tokio::time::Instant::now() + patience;
        let mut delay = Duration::from_millis(5);
        loop {
            let mut client = runtime.clone();
            let operation = Operation::begin(&metrics, "version");
            let asked = client.version(cri::VersionRequest { version: "v1".into() });
            let answer = within(Duration::from_secs(10), asked).await;
            operation.ended(answer.is_ok());
            match answer {
                Ok(version) => {
                    let name =
                        if version.runtime_name.is_empty() { "unknown".to_owned() } else { version.runtime_name };
                    return Ok(CriRuntime {
                        runtime,
                        images,
                        timeout: config.request_timeout,
                        name,
                        version: version.runtime_version,
                        metrics,
                    });
                }
                Err(error) if tokio::time::Instant::now() >= end => {
                    return Err(ConnectError::Silent {
                        endpoint: config.runtime_endpoint.clone(),
                        message: error.message,
                    });
                }
                Err(_) => tokio::time::sleep(delay).await,
            }
            delay = (delay * 2).min(Duration::from_millis(500));
        }
    }

    /// Name and version of the runtime, as node status shows them (`name://version`).
    pub fn name_and_version(&self) -> String {
        format!("{}://{}", self.name, self.version)
    }

    /// The images of the node.
    ///
    /// # Errors
    /// When the runtime does not answer in time, or can't tell.
    pub async fn list_images(&self) -> Result<Vec<ImageFact>, RuntimeError> {
        let mut client = self.images.clone();
        let request = cri::ListImagesRequest { filter: None };
        let list = self.call("list_images", client.list_images(request)).await?;
        Ok(list.images.into_iter().map(from_cri::image).collect())
    }

    /// Makes a call with the usual deadline and counts it by the kubelet's word for it.
    async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        self.call_within(operation, self.timeout, call).await
    }

    async fn call_within<T>(
        &self,
        operation: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        let operation = Operation::begin(&self.metrics, operation);
        let answer = within(deadline, call).await;
        operation.ended(answer.is_ok());
        answer
    }

    /// Status of a listed sandbox. If only that call fails, what the list says has to do: one damaged object must not
    /// look as if it were gone, nor hide the others.
    async fn sandbox_status(&self, from: cri::PodSandbox) -> Result<Option<ObservedPod>, RuntimeError> {
        let mut client = self.runtime.clone();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: from.id.clone(), verbose: false };
        match self.call("podsandbox_status", client.pod_sandbox_status(request)).await {
            Ok(response) => Ok(response.status.as_ref().and_then(from_cri::sandbox)),
            Err(error) if error.failure == RuntimeFailure::NotFound => Ok(None),
            Err(error) if error.failure == RuntimeFailure::Unavailable => Err(error),
            Err(error) => {
                tracing::warn!(sandbox = from.id, %error, "no status of a sandbox");
                Ok(from_cri::sandbox(&from_cri::listed_sandbox(from)))
            }
        }
    }

    /// Status of a listed container, in the same way.
    async fn container_status(&self, from: cri::Container) -> Result<Option<ObservedPod>, RuntimeError> {
        let mut client = self.runtime.clone();
        let Some(mut pod) = from_cri::pod_of(&from.labels.clone().into_iter().collect()) else { return Ok(None) };
        let sandbox_id = from.pod_sandbox_id.clone();
        let request = cri::ContainerStatusRequest { container_id: from.id.clone(), verbose: false };
        match self.call("container_status", client.container_status(request)).await {
            Ok(response) => {
                pod.containers.extend(response.status.as_ref().map(|status| from_cri::container(&sandbox_id, status)))
            }
            Err(error) if error.failure == RuntimeFailure::NotFound => return Ok(None),
            Err(error) if error.failure == RuntimeFailure::Unavailable => return Err(error),
            Err(error) => {
                tracing::warn!(container = from.id, %error, "no status of a container");
                pod.containers.push(from_cri::container(&sandbox_id, &from_cri::listed_container(from)));
            }
        }
        Ok(Some(pod))
    }

    /// Lists sandboxes and containers that have a label (or all) and asks for the status of each.
    async fn list(&self, label: Option<(&str, &str)>) -> Result<Vec<ObservedPod>, RuntimeError> {
        let selector: HashMap<String, String> =
            label.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (mut first, mut second) = (self.runtime.clone(), self.runtime.clone());
        let sandboxes = cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() }),
        };
        let containers = cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter { label_selector: selector, ..Default::default() }),
        };
        let (sandboxes, containers) = futures::future::try_join(
            self.call("list_podsandbox", first.list_pod_sandbox(sandboxes)),
            self.call("list_containers", second.list_containers(containers)),
        )
        .await?;
        let mut calls: Vec<futures::future::BoxFuture<'_, Result<Option<ObservedPod>, RuntimeError>>> = Vec::new();
        for sandbox in sandboxes.items {
            calls.push(Box::pin(self.sandbox_status(sandbox)));
        }
        for container in containers.containers {
            calls.push(Box::pin(self.container_status(container)));
        }
        let mut answers = futures::stream::iter(calls).buffer_unordered(LIST_PARALLEL);
        let mut pods: HashMap<String, ObservedPod> = HashMap::new();
        while let Some(answer) = answers.next().await {
            if let Some(part) = answer? {
                pods.entry(part.uid.clone()).or_default().merge(part);
            }
        }
        Ok(pods.into_values().collect())
    }
}

impl Runtime for CriRuntime {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn status(&self) -> Answer<'_, RuntimeStatus> {
        let mut client = self.runtime.clone();
        Box::pin(async move {
            Ok(from_cri::status(&self.call("status", client.status(cri::StatusRequest { verbose: false })).await?))
        })
    }

    fn run_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Answer<'a, String> {
        let mut client = self.runtime.clone();
        let request = cri::RunPodSandboxRequest {
            config: Some(to_cri::sandbox_config(spec)),
            runtime_handler: spec.runtime_handler.clone(),
        };
        Box::pin(async move {
            Ok(self
                .call_within("run_podsandbox", self.timeout * 2, client.run_pod_sandbox(request))
                .await?
                .pod_sandbox_id)
        })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        Box::pin(
            async move { gone_is_done(self.call("stop_podsandbox", client.stop_pod_sandbox(request)).await.map(drop)) },
        )
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        Box::pin(async move {
            gone_is_done(self.call("remove_podsandbox", client.remove_pod_sandbox(request)).await.map(drop))
        })
    }

    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        spec: &'a ContainerSpec,
        sandbox: &'a SandboxSpec,
    ) -> Answer<'a, String> {
        let mut client = self.runtime.clone();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(to_cri::container_config(spec)),
            sandbox_config: Some(to_cri::sandbox_config(sandbox)),
        };
        Box::pin(async move { Ok(self.call("create_container", client.create_container(request)).await?.container_id) })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        Box::pin(async move { self.call("start_container", client.start_container(request)).await.map(drop) })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace_seconds: i64) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let deadline = self.timeout + Duration::from_secs(grace_seconds.clamp(0, 1 << 32) as u64);
        Box::pin(async move {
            gone_is_done(self.call_within("stop_container", deadline, client.stop_container(request)).await.map(drop))
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        Box::pin(async move {
            gone_is_done(self.call("remove_container", client.remove_container(request)).await.map(drop))
        })
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput> {
        let mut client = self.runtime.clone();
        let seconds = timeout.as_millis().div_ceil(1000) as i64;
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: seconds };
        Box::pin(async move {
            let operation = Operation::begin(&self.metrics, "exec_sync");
            let call = client.exec_sync(request);
            let answer = if timeout.is_zero() {
                call.await.map(Response::into_inner).map_err(|status| from_status(&status))
            } else {
                within(self.timeout + timeout, call).await
            };
            // A command that fails is a call that failed, as for the kubelet.
            operation.ended(answer.as_ref().is_ok_and(|response| response.exit_code == 0));
            let response = answer?;
            Ok(ExecOutput { exit_code: response.exit_code, stdout: response.stdout, stderr: response.stderr })
        })
    }

    fn exec_url<'a>(&'a self, id: &'a str, command: Vec<String>, options: StreamOptions) -> Answer<'a, String> {
        let mut client = self.runtime.clone();
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: command,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        Box::pin(async move { Ok(self.call("exec", client.exec(request)).await?.url) })
    }

    fn attach_url<'a>(&'a self, id: &'a str, options: StreamOptions) -> Answer<'a, String> {
        let mut client = self.runtime.clone();
        let request = cri::AttachRequest {
            container_id: id.to_owned(),
            stdin: options.stdin,
            tty: options.tty,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        Box::pin(async move { Ok(self.call("attach", client.attach(request)).await?.url) })
    }

    fn port_forward_url<'a>(&'a self, sandbox_id: &'a str, ports: Vec<i32>) -> Answer<'a, String> {
        let mut client = self.runtime.clone();
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port: ports };
        Box::pin(async move { Ok(self.call("port_forward", client.port_forward(request)).await?.url) })
    }

    fn image<'a>(&'a self, image: &'a str, runtime_handler: &'a str) -> Answer<'a, Option<ImageFact>> {
        let mut client = self.images.clone();
        let spec = cri::ImageSpec {
            image: image.to_owned(),
            runtime_handler: runtime_handler.to_owned(),
            ..Default::default()
        };
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        Box::pin(async move {
            match self.call("image_status", client.image_status(request)).await {
                Ok(response) => Ok(response.image.map(from_cri::image)),
                Err(error) if error.failure == RuntimeFailure::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        sandbox: Option<&'a SandboxSpec>,
    ) -> Answer<'a, String> {
        let mut client = self.images.clone();
        let runtime_handler = sandbox.map(|sandbox| sandbox.runtime_handler.clone()).unwrap_or_default();
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                user_specified_image: image.to_owned(),
                runtime_handler,
                ..Default::default()
            }),
            auth: auth.map(to_cri::auth_config),
            sandbox_config: sandbox.map(to_cri::sandbox_config),
        };
        Box::pin(async move {
            let operation = Operation::begin(&self.metrics, "pull_image");
            let answer = client.pull_image(request).await;
            operation.ended(answer.is_ok());
            answer.map(|response| response.into_inner().image_ref).map_err(|status| from_status(&status))
        })
    }

    fn pod<'a>(&'a self, uid: &'a str) -> Answer<'a, ObservedPod> {
        Box::pin(async move {
            let pods = self.list(Some((labels::POD_UID, uid))).await?;
            Ok(pods
                .into_iter()
                .find(|pod| pod.uid == uid)
                .unwrap_or_else(|| ObservedPod { uid: uid.to_owned(), ..ObservedPod::default() }))
        })
    }

    fn pods(&self) -> Answer<'_, (Timestamp, Vec<ObservedPod>)> {
        let begun = Timestamp::now();
        Box::pin(async move { Ok((begun, self.list(None).await?)) })
    }

    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ObservedPod>> {
        let mut client = self.runtime.clone();
        let request = cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter { id: id.to_owned(), ..Default::default() }),
        };
        Box::pin(async move {
            let list = self.call("list_containers", client.list_containers(request)).await?;
            match list.containers.into_iter().find(|container| container.id == id) {
                Some(container) => self.container_status(container).await,
                None => Ok(None),
            }
        })
    }

    fn events(&self) -> Box<dyn RuntimeEvents> {
        Box::new(EventStream::new(self.runtime.clone(), self.metrics.clone()))
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let mut client = self.runtime.clone();
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        Box::pin(async move { self.call("reopen_container_log", client.reopen_container_log(request)).await.map(drop) })
    }
}
