//! `ExecSync` and the process behind `Exec`: one more process in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use orlop_container::protocol::{Reply, Request};
use orlop_proto::cri;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

use crate::container::Container;
use crate::error::{RpcError, argument, file};
use crate::server::Server;
use crate::shim::{ANSWER_TIME, ShimCall, ShimError, unexpected};

/// Bytes of each stream that `ExecSync` keeps; the rest is read and dropped, so that the command goes on. Both
/// together stay below the 16 MiB that clients of the CRI accept.
const OUTPUT_BYTES_MAX: usize = (8 << 20) - (64 << 10);
/// How long output is read after the end of a command, whose children may hold it open.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Runs a command to its end.
pub(crate) async fn exec_sync(
    server: Arc<Server>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    container.check_running()?;
    if request.cmd.is_empty() {
        return Err(argument("cmd", "is empty: name a program"));
    }
    let running = run(&container, request.cmd.clone());
    if request.timeout <= 0 {
        return running.await;
    }
    // Dropping the future closes the connection, and the shim kills the process.
    let limit = Duration::from_secs(request.timeout as u64);
    tokio::time::timeout(limit, running).await.map_err(|_| RpcError::CommandTimeout {
        id: container.id.clone(),
        command: request.cmd,
        seconds: request.timeout,
    })?
}

async fn run(container: &Container, command: Vec<String>) -> Result<cri::ExecSyncResponse, RpcError> {
    let pipe = || -> std::io::Result<(pipe::Receiver, OwnedFd)> {
        let (read, write) = std::io::pipe()?;
        Ok((pipe::Receiver::from_owned_fd(read.into())?, write.into()))
    };
    let (mut stdout, stdout_end) = pipe().map_err(file("make a pipe for", "stdout"))?;
    let (mut stderr, stderr_end) = pipe().map_err(file("make a pipe for", "stderr"))?;
    let mut call = start(container, command, [null()?, stdout_end, stderr_end]).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit_code = {
        let reading = async { tokio::join!(read_all(&mut stdout, &mut out), read_all(&mut stderr, &mut err)) };
        tokio::pin!(reading);
        let exit = wait(&mut call, container);
        tokio::pin!(exit);
        tokio::select! {
            _ = &mut reading => exit.await?,
            exit_code = &mut exit => {
                let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
                exit_code?
            }
        }
    };
    Ok(cri::ExecSyncResponse { stdout: out, stderr: err, exit_code })
}

/// Starts a command with its three streams, which are closed here afterwards.
pub(crate) async fn start(
    container: &Container,
    args: Vec<String>,
    streams: [OwnedFd; 3],
) -> Result<ShimCall, RpcError> {
    let request = Request::Exec { id: container.id.clone(), args, env: vec![], tty: false };
    let [stdin, stdout, stderr] = &streams;
    let started = async {
        let ends = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut call = ShimCall::open(&container.sandbox.folder, &request, &ends).await?;
        started(&mut call).await?;
        Ok(call)
    };
    started.await.map_err(failed(container))
}

/// Starts a command with a terminal and returns the terminal's master.
pub(crate) async fn start_terminal(container: &Container, args: Vec<String>) -> Result<(ShimCall, OwnedFd), RpcError> {
    let env = vec!["TERM=xterm".to_string()];
    let request = Request::Exec { id: container.id.clone(), args, env, tty: true };
    let started = async {
        let mut call = ShimCall::open(&container.sandbox.folder, &request, &[]).await?;
        started(&mut call).await?;
        let master = call.take_descriptor();
        let master = master.ok_or_else(|| ShimError::Unexpected { reply: "no terminal".into() })?;
        Ok((call, master))
    };
    started.await.map_err(failed(container))
}

async fn started(call: &mut ShimCall) -> Result<(), ShimError> {
    match call.answer(ANSWER_TIME).await? {
        Reply::ExecStarted { .. } => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Waits for the end of a command.
pub(crate) async fn wait(call: &mut ShimCall, container: &Container) -> Result<i32, RpcError> {
    match call.next().await.map_err(failed(container))? {
        Some(Reply::ExecExited { exit_code }) => Ok(exit_code),
        Some(other) => Err(failed(container)(unexpected(&other))),
        None => Err(failed(container)(ShimError::Gone { folder: container.sandbox.folder.clone() })),
    }
}

fn failed(container: &Container) -> impl FnOnce(ShimError) -> RpcError {
    let object = container.title();
    move |source| RpcError::Shim { step: "run a command in the container", object, source }
}

/// `/dev/null`, for a stream that nobody wants.
pub(crate) fn null() -> Result<OwnedFd, RpcError> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/null");
    Ok(opened.map_err(file("open", "/dev/null"))?.into())
}

/// Reads a stream to its end and keeps as much as is allowed.
async fn read_all(stream: &mut (impl AsyncRead + Unpin), kept: &mut Vec<u8>) {
    let mut chunk = vec![0; 32 << 10];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend(&chunk[..count.min(room)]);
    }
}
