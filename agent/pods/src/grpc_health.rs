//! The gRPC health check (`grpc.health.v1.Health/Check`) over plain HTTP/2: one call per connection.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_agent_core::probe::ProbeOutcome;

use crate::probe_stream::connect;

/// Most bytes of an answer that are read; the message itself has two.
const MAX_ANSWER: usize = 4096;
/// Status `UNIMPLEMENTED` of gRPC.
const UNIMPLEMENTED: &str = "12";

/// Asks a server for the health of a service; only SERVING is success.
pub(crate) async fn check_health(host: &str, port: u16, service: &str, timeout: Duration) -> ProbeOutcome {
    match tokio::time::timeout(timeout, call(host, port, service)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(message)) => ProbeOutcome::Failure(message),
        Err(_) => ProbeOutcome::Failure(format!(
            "timeout: failed to connect service \"{host}:{port}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

async fn call(host: &str, port: u16, service: &str) -> Result<ProbeOutcome, String> {
    let stream =
        connect(host, port).await.map_err(|error| format!("failed to connect service \"{host}:{port}\": {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(encode(service))))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let mut status = grpc_status(response.headers());
        let mut body = Vec::new();
        let mut frames = response.into_body();
        while let Some(frame) = frames.frame().await {
            let frame = frame.map_err(|error| error.to_string())?;
            if let Some(trailers) = frame.trailers_ref() {
                status = grpc_status(trailers).or(status);
            } else if let Some(data) = frame.data_ref() {
                body.extend_from_slice(data);
            }
            if body.len() > MAX_ANSWER {
                return Err("the answer is longer than a health check's".to_owned());
            }
        }
        Ok(judge(status.as_ref(), &body, service))
    };
    tokio::select! {
        result = exchange => result,
        // The connection only ends before the exchange when it fails.
        result = connection => Err(result.err().map_or_else(|| "the connection was closed".to_owned(), |error| error.to_string())),
    }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some((text("grpc-status")?, text("grpc-message").unwrap_or_default()))
}

/// A `HealthCheckRequest` (field 1: service) with gRPC's prefix.
fn encode(service: &str) -> Vec<u8> {
    let name = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !name.is_empty() {
        message.extend([0x0a, name.len() as u8]);
        message.extend(name);
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

fn judge(status: Option<&(String, String)>, body: &[u8], service: &str) -> ProbeOutcome {
    match status {
        Some((code, _)) if code == "0" => {}
        Some((code, _)) if code == UNIMPLEMENTED => {
            return ProbeOutcome::Failure(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
            );
        }
        Some((code, message)) => {
            return ProbeOutcome::Failure(format!("error: health rpc probe failed: code {code}: {message}"));
        }
        None => {
            return ProbeOutcome::Failure("error: health rpc probe failed: the answer has no gRPC status".to_owned());
        }
    }
    // `HealthCheckResponse` has one field, status: 0x08 and a small number; left out it is UNKNOWN.
    let state = match body {
        [0, _, _, _, _, 0x08, state, ..] => *state,
        _ => 0,
    };
    let name = match state {
        1 => return ProbeOutcome::Success,
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    ProbeOutcome::Failure(format!("service unhealthy (responded with \"{name}\", service {service:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers() {
        assert_eq!(encode(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let ok = ("0".to_owned(), String::new());
        assert_eq!(judge(Some(&ok), &[0, 0, 0, 0, 2, 8, 1], ""), ProbeOutcome::Success);
        for (status, body) in [
            (Some(ok.clone()), vec![0, 0, 0, 0, 2, 8, 2]),
            (Some(ok), vec![]),
            (Some(("12".into(), String::new())), vec![]),
            (None, vec![]),
        ] {
            assert!(matches!(judge(status.as_ref(), &body, ""), ProbeOutcome::Failure(_)), "{status:?} {body:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_http2_fails_in_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(
            check_health("127.0.0.1", port, "", Duration::from_millis(50)).await,
            ProbeOutcome::Failure(_)
        ));
    }
}
