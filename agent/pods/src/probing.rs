//! One try of a probe: exec, HTTP, TCP or gRPC.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use orlop_agent_core::probe::{ProbeOutcome, probe_timing};
use orlop_agent_core::runtime::{Runtime, RuntimeFailure};

use crate::grpc_health::check_health;
use crate::hooks::{http_request, resolve_port};
use crate::http_client::get;
use crate::probe_stream::connect;

/// Most bytes of output that are kept.
const MAX_OUTPUT: usize = 10 << 10;
/// Tries within one period when a probe can't be made at all.
const TRIES: usize = 3;

/// What a probe is made on.
#[derive(Clone, Debug)]
pub(crate) struct ProbeTarget {
    pub container_id: String,
    pub container: Container,
    pub pod_ip: String,
}

/// Makes one try, and up to two more if it can't be made.
pub(crate) async fn run_probe(runtime: &dyn Runtime, target: &ProbeTarget, probe: &Probe) -> ProbeOutcome {
    let mut outcome = ProbeOutcome::Error("not tried".to_owned());
    for _ in 0..TRIES {
        outcome = try_once(runtime, target, probe).await;
        if !matches!(outcome, ProbeOutcome::Error(_)) {
            break;
        }
    }
    outcome
}

async fn try_once(runtime: &dyn Runtime, target: &ProbeTarget, probe: &Probe) -> ProbeOutcome {
    let timeout = Duration::try_from(probe_timing(probe).timeout).unwrap_or(Duration::from_secs(1));
    if let Some(action) = &probe.exec {
        return exec(runtime, target, action.command.as_deref().unwrap_or_default(), timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return match http_request(action, &target.container, &target.pod_ip) {
            Ok(request) => http(request, timeout).await,
            Err(message) => ProbeOutcome::Error(message),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.pod_ip);
        return match resolve_port(&action.port, &target.container) {
            Ok(port) => tcp(host, port, timeout).await,
            Err(message) => ProbeOutcome::Error(message),
        };
    }
    if let Some(action) = &probe.grpc {
        return match u16::try_from(action.port) {
            Ok(port) => {
                check_health(&target.pod_ip, port, action.service.as_deref().unwrap_or_default(), timeout).await
            }
            Err(_) => ProbeOutcome::Error(format!("invalid port number: {}", action.port)),
        };
    }
    ProbeOutcome::Error("missing probe handler: it names neither exec nor httpGet nor tcpSocket nor grpc".to_owned())
}

async fn exec(runtime: &dyn Runtime, target: &ProbeTarget, command: &[String], timeout: Duration) -> ProbeOutcome {
    match runtime.exec_sync(&target.container_id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => ProbeOutcome::Success,
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            text.truncate(MAX_OUTPUT);
            ProbeOutcome::Failure(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) if error.failure == RuntimeFailure::Deadline => ProbeOutcome::Failure(format!(
            "command timed out: {:?} timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(error) => ProbeOutcome::Error(error.message),
    }
}

async fn http(request: crate::http_client::HttpRequest, timeout: Duration) -> ProbeOutcome {
    match get(request, timeout).await {
        Ok(answer) => match (answer.status, answer.elsewhere) {
            (200..400, Some(location)) => ProbeOutcome::Warning(format!(
                "Probe terminated redirects, Response body: {}, Location: {location}",
                answer.body
            )),
            (200..400, None) => ProbeOutcome::Success,
            (status, _) => ProbeOutcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
        Err(error) => ProbeOutcome::Failure(error.to_string()),
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> ProbeOutcome {
    match tokio::time::timeout(timeout, connect(host, port)).await {
        Ok(Ok(_)) => ProbeOutcome::Success,
        Ok(Err(error)) => ProbeOutcome::Failure(format!("dial tcp {host}:{port}: connect: {error}")),
        Err(_) => ProbeOutcome::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}
