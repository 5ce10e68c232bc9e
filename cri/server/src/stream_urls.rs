//! `Exec`, `Attach` and `PortForward`: the request is checked here and streamed by the streaming server.

use orlop_proto::cri;
use orlop_streaming::{AttachRequest, ExecRequest, PortForwardRequest};

use crate::error::{RpcError, argument};
use crate::server::Server;

/// The URL of an exec.
pub(crate) fn exec(server: &Server, request: cri::ExecRequest) -> Result<cri::ExecResponse, RpcError> {
    check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    if request.cmd.is_empty() {
        return Err(argument("cmd", "is empty: name a program"));
    }
    let container = server.store.container(&request.container_id)?;
    container.check_running()?;
    let url = server.streaming.exec_url(ExecRequest {
        container_id: container.id.clone(),
        command: request.cmd,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })?;
    Ok(cri::ExecResponse { url })
}

/// The URL of an attach.
pub(crate) fn attach(server: &Server, request: &cri::AttachRequest) -> Result<cri::AttachResponse, RpcError> {
    check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let container = server.store.container(&request.container_id)?;
    container.check_running()?;
    let url = server.streaming.attach_url(AttachRequest {
        container_id: container.id.clone(),
        stdin: request.stdin && container.config.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: container.config.tty,
    })?;
    Ok(cri::AttachResponse { url })
}

/// The URL of a port-forward.
pub(crate) fn port_forward(
    server: &Server,
    request: &cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, RpcError> {
    let sandbox = server.store.sandbox(&request.pod_sandbox_id)?;
    if !sandbox.state().ready {
        return Err(RpcError::State {
            kind: "sandbox",
            id: sandbox.id.clone(),
            state: "not ready",
            wanted: "ports are forwarded to one that is ready",
        });
    }
    let ports = request.port.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0));
    let ports = ports.collect::<Option<Vec<_>>>().ok_or_else(|| argument("port", "has to be 1 to 65535"))?;
    let url = server.streaming.port_forward_url(PortForwardRequest { sandbox_id: sandbox.id.clone(), ports })?;
    Ok(cri::PortForwardResponse { url })
}

fn check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<(), RpcError> {
    if tty && stderr {
        return Err(argument("stderr", "can't be had apart from stdout when tty is set"));
    }
    if !stdin && !stdout && !stderr {
        return Err(argument("stdin", "one of stdin, stdout and stderr has to be set"));
    }
    Ok(())
}
