//! postStart and preStop: exec, httpGet, sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use orlop_agent_core::ports::EventType;
use orlop_agent_core::runtime::RuntimeFailure;

use crate::http_client::{HttpError, HttpRequest, get};
use crate::recorder::named_event;
use crate::shared::Shared;

/// Longest wait for an HTTP hook that sets no other bound.
const HTTP_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// A port by number or name.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            match (named, name.parse::<i32>()) {
                (Some(port), _) => port.container_port,
                (None, Ok(number)) => number,
                (None, Err(_)) => {
                    return Err(format!("couldn't find port: {name:?} in container {:?}", container.name));
                }
            }
        }
    };
    u16::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// The request of an httpGet action.
pub(crate) fn http_request(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<HttpRequest, String> {
    let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip).to_owned();
    if host.is_empty() {
        return Err("the pod has no address yet".to_owned());
    }
    let path = action.path.as_deref().unwrap_or("/");
    Ok(HttpRequest {
        https: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host,
        port: resolve_port(&action.port, container)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: action
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

/// Runs a hook. `bound` is what is left of the grace for preStop; postStart has none.
pub(crate) async fn run_hook(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    handler: &LifecycleHandler,
    pod_ip: &str,
    bound: Option<Duration>,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let timeout = bound.unwrap_or(Duration::ZERO);
        return match shared.ports.runtime.exec_sync(container_id, &command, timeout).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => {
                let mut text = output.stdout;
                text.extend(output.stderr);
                text.truncate(1024);
                Err(format!(
                    "command '{}' exited with {}: {}",
                    command.join(" "),
                    output.exit_code,
                    String::from_utf8_lossy(&text)
                ))
            }
            Err(error) if error.failure == RuntimeFailure::Deadline => {
                Err(format!("command '{}' timed out", command.join(" ")))
            }
            Err(error) => Err(error.message),
        };
    }
    if let Some(action) = &handler.http_get {
        let request = http_request(action, container, pod_ip)?;
        let timeout = bound.unwrap_or(HTTP_DEADLINE);
        let answer = match get(request.clone(), timeout).await {
            Err(HttpError::PlainAnswer { .. }) => {
                let message = format!(
                    "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
                    request.url()
                );
                let retried = get(HttpRequest { https: false, ..request }, timeout).await;
                if retried.is_ok() {
                    named_event(
                        &*shared.ports.events,
                        pod,
                        &container.name,
                        EventType::Warning,
                        "LifecycleHTTPFallback",
                        &message,
                    );
                }
                retried
            }
            other => other,
        };
        return match answer {
            Ok(answer) if (200..400).contains(&answer.status) => Ok(()),
            Ok(answer) => Err(format!("HTTP hook answered {}", answer.status)),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &handler.sleep {
        let wanted = Duration::from_secs(action.seconds.max(0) as u64);
        tokio::time::sleep(bound.map_or(wanted, |bound| wanted.min(bound))).await;
        return Ok(());
    }
    Err("invalid handler: it names neither exec nor httpGet nor sleep".to_owned())
}
