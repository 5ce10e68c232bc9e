//! What the streaming server asks for: exec, attach and connections into a pod's network.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orlop_container::protocol::{Reply, Request};
use orlop_kernel::{namespace, terminal};
use orlop_streaming::runtime::RuntimeFuture;
use orlop_streaming::{AttachRequest, ExecRequest, Outcome, ProcessStreams, Runtime, RuntimeError, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::container::Container;
use crate::container_exec::{null, start, start_terminal, wait};
use crate::error::chain;
use crate::server::Server;
use crate::shim::{ANSWER_TIME, ShimCall, ShimError, unexpected};

/// How long output is read after the end of a command, whose children may hold it open.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// How long a connection to a pod's port may take.
const DIAL_TIME: Duration = Duration::from_secs(10);
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// What Ctrl-D sends.
const END_OF_TRANSMISSION: u8 = 4;

/// The runtime behind the streaming server.
pub(crate) struct Streams(pub(crate) Arc<Server>);

impl Runtime for Streams {
    fn exec(&self, request: ExecRequest, streams: ProcessStreams) -> RuntimeFuture<'_, Result<Outcome, RuntimeError>> {
        Box::pin(async move {
            let container = self.running(&request.container_id)?;
            let exit_code = if request.tty {
                exec_terminal(&container, request.command, streams).await?
            } else {
                exec_pipes(&container, request.command, streams).await?
            };
            Ok(Outcome { exit_code })
        })
    }

    fn attach(
        &self,
        request: AttachRequest,
        streams: ProcessStreams,
    ) -> RuntimeFuture<'_, Result<Outcome, RuntimeError>> {
        Box::pin(async move {
            let container = self.running(&request.container_id)?;
            attach(&container, &request, streams).await?;
            Ok(Outcome { exit_code: 0 })
        })
    }

    fn dial<'a>(&'a self, sandbox_id: &'a str, port: u16) -> RuntimeFuture<'a, Result<TcpStream, RuntimeError>> {
        Box::pin(async move {
            let sandbox = self.0.store.sandbox(sandbox_id).map_err(|error| words(&error))?;
            let netns = sandbox.netns.clone();
            let dialed = tokio::task::spawn_blocking(move || match netns {
                Some(path) => namespace::in_network(&path, || dial(port)).map_err(std::io::Error::other)?,
                None => dial(port),
            });
            let stream = dialed.await.map_err(|error| words(&error))?;
            let stream = stream.map_err(|error| {
                RuntimeError(format!("connect to port {port} of pod {}: {}", sandbox.pod(), chain(&error)))
            })?;
            TcpStream::from_std(stream).map_err(|error| words(&error))
        })
    }
}

impl Streams {
    fn running(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        let container = self.0.store.container(id).map_err(|error| words(&error))?;
        container.check_running().map_err(|error| words(&error))?;
        Ok(container)
    }
}

fn words(error: &dyn std::error::Error) -> RuntimeError {
    RuntimeError(chain(error))
}

/// Connects to a port of this network's loopback: IPv4 first, then IPv6.
fn dial(port: u16) -> std::io::Result<std::net::TcpStream> {
    let connect = |ip: std::net::IpAddr| std::net::TcpStream::connect_timeout(&(ip, port).into(), DIAL_TIME);
    let v4 = connect(std::net::Ipv4Addr::LOCALHOST.into());
    let stream = v4.or_else(|error| connect(std::net::Ipv6Addr::LOCALHOST.into()).map_err(|_| error))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Runs a command whose streams are pipes.
async fn exec_pipes(container: &Container, command: Vec<String>, streams: ProcessStreams) -> Result<i32, RuntimeError> {
    let ProcessStreams { stdin, stdout, stderr, resize: _resize } = streams;
    let (input, input_end) = match stdin {
        Some(stdin) => {
            let (end, sender) = input_pipe()?;
            (Some((sender, stdin)), end)
        }
        None => (None, null().map_err(|error| words(&error))?),
    };
    let (out, out_end) = output(stdout)?;
    let (err, err_end) = output(stderr)?;
    let call = start(container, command, [input_end, out_end, err_end]).await;
    let mut call = call.map_err(|error| words(&error))?;
    let feeding = async {
        if let Some((sender, stdin)) = input {
            feed(sender, stdin).await;
        }
        std::future::pending::<()>().await;
    };
    let reading = async { tokio::join!(carry_if(out), carry_if(err)) };
    tokio::pin!(feeding, reading);
    let exit = wait(&mut call, container);
    tokio::pin!(exit);
    let mut open = true;
    let exit_code = loop {
        tokio::select! {
            exit_code = &mut exit => break exit_code.map_err(|error| words(&error))?,
            // Its output is closed; its input may still be read.
            _ = &mut reading, if open => open = false,
            () = &mut feeding => {}
        }
    };
    if open {
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    }
    Ok(exit_code)
}

type Output = Option<(pipe::Receiver, mpsc::Sender<Bytes>)>;

/// The two ends of an output: `/dev/null` when nobody wants it.
fn output(wanted: Option<mpsc::Sender<Bytes>>) -> Result<(Output, OwnedFd), RuntimeError> {
    let Some(sender) = wanted else { return Ok((None, null().map_err(|error| words(&error))?)) };
    let (read, write) = std::io::pipe().map_err(|error| words(&error))?;
    let read = pipe::Receiver::from_owned_fd(read.into()).map_err(|error| words(&error))?;
    Ok((Some((read, sender)), write.into()))
}

/// The two ends of an input.
fn input_pipe() -> Result<(OwnedFd, pipe::Sender), RuntimeError> {
    let (read, write) = std::io::pipe().map_err(|error| words(&error))?;
    let write = pipe::Sender::from_owned_fd(write.into()).map_err(|error| words(&error))?;
    Ok((read.into(), write))
}

/// Writes what the client says; the end of it closes the pipe.
async fn feed(mut pipe: pipe::Sender, mut stdin: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = stdin.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

async fn carry_if(output: Output) {
    let Some((mut pipe, sender)) = output else { return };
    let mut chunk = vec![0; CHUNK];
    while let Ok(count) = pipe.read(&mut chunk).await {
        if count == 0 || sender.send(Bytes::copy_from_slice(&chunk[..count])).await.is_err() {
            break;
        }
    }
}

/// Runs a command in a terminal.
async fn exec_terminal(
    container: &Container,
    command: Vec<String>,
    streams: ProcessStreams,
) -> Result<i32, RuntimeError> {
    let (mut call, master) = start_terminal(container, command).await.map_err(|error| words(&error))?;
    let (screen, mut keyboard) = terminal_ends(&master).map_err(|error| words(&error))?;
    let ProcessStreams { mut stdin, stdout, stderr: _stderr, mut resize } = streams;
    let exit = wait(&mut call, container);
    let reading = carry_if(stdout.map(|stdout| (screen, stdout)));
    tokio::pin!(exit, reading);
    let mut open = true;
    let exit_code = loop {
        tokio::select! {
            exit_code = &mut exit => break exit_code.map_err(|error| words(&error))?,
            () = &mut reading, if open => open = false,
            bytes = receive(&mut stdin) => {
                // The end of a terminal's input is what the user would type.
                let typed = bytes.as_deref().unwrap_or(&[END_OF_TRANSMISSION]);
                let _ = keyboard.write_all(typed).await;
                if bytes.is_none() {
                    stdin = None;
                }
            }
            Some(TerminalSize { width, height }) = resize.recv() => {
                if let Err(error) = terminal::set_size(&master, width, height) {
                    tracing::debug!(%error, "set the size of a terminal");
                }
            }
        }
    };
    if open {
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    }
    Ok(exit_code)
}

/// A terminal's master as something to read and something to write, as pipes are.
fn terminal_ends(master: &OwnedFd) -> std::io::Result<(pipe::Receiver, pipe::Sender)> {
    rustix::io::ioctl_fionbio(master, true)?;
    let screen = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
    Ok((screen, pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?))
}

/// The next input; never when there is none.
async fn receive(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// Joins the streams of a container's first process.
async fn attach(container: &Container, request: &AttachRequest, streams: ProcessStreams) -> Result<(), RuntimeError> {
    let ProcessStreams { stdin, stdout, stderr, mut resize } = streams;
    let (input_end, sender) = input_pipe()?;
    let (out, out_end) = output(stdout)?;
    let (err, err_end) = output(stderr)?;
    let asked = Request::Attach {
        id: container.id.clone(),
        stdin: stdin.is_some(),
        stdout: out.is_some(),
        stderr: err.is_some() && !request.tty,
    };
    let joined = async {
        let ends = [input_end.as_fd(), out_end.as_fd(), err_end.as_fd()];
        let mut call = ShimCall::open(&container.sandbox.folder, &asked, &ends).await?;
        match call.answer(ANSWER_TIME).await? {
            Reply::Done => Ok(call),
            other => Err(unexpected(&other)),
        }
    };
    let mut call = joined.await.map_err(|error: ShimError| words(&error))?;
    drop((input_end, out_end, err_end));
    let feeding = async move {
        match stdin {
            Some(stdin) => feed(sender, stdin).await,
            None => drop(sender),
        }
        std::future::pending::<()>().await;
    };
    let resizing = async {
        while let Some(TerminalSize { width, height }) = resize.recv().await {
            let told = Request::Resize { id: container.id.clone(), width, height };
            if let Err(error) = crate::shim::tell(&container.sandbox.folder, &told).await {
                tracing::debug!(error = chain(&error), "set the size of a terminal");
            }
        }
        std::future::pending::<()>().await;
    };
    let silent = out.is_none() && err.is_none();
    let reading = async {
        tokio::join!(carry_if(out), carry_if(err));
    };
    tokio::pin!(reading);
    tokio::select! {
        _ended = call.next() => {}
        () = &mut reading, if !silent => return Ok(()),
        () = feeding => {}
        () = resizing => {}
    }
    if !silent {
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    }
    Ok(())
}
