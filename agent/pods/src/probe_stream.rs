//! Connections of probes and hooks, which leave nothing behind on the node.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::Shutdown;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection that ends when it is dropped.
///
/// Whoever ends a connection first keeps its ports for a minute (`TIME_WAIT`), and a node with many probes runs out of
/// them. So the end is told (the other side reads it as such, not as an error) and the rest is cut off at once. Waiting
/// for the other side, as `SO_LINGER` with a time does, changes nothing about that minute and can block the thread.
#[derive(Debug)]
pub(crate) struct ProbeStream(TcpStream);

/// Connects.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<ProbeStream> {
    TcpStream::connect((host, port)).await.map(ProbeStream)
}

impl Drop for ProbeStream {
    fn drop(&mut self) {
        // A connection that is no more can't be ended; there is nothing left of it then, either.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
        let _ = set_socket_linger(&self.0, Some(Duration::ZERO));
    }
}

impl AsyncRead for ProbeStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ProbeStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    /// The end is told when it is dropped, at once after this, and once is enough.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// Sockets of the port that wait, by the kernel's table (state 06 is `TIME_WAIT`).
    fn waiting(port: u16) -> usize {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let end = format!(":{port:04X}");
        let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[3] == "06" && (row[1].ends_with(&end) || row[2].ends_with(&end))).count()
    }

    #[tokio::test]
    async fn connections_end_cleanly_and_leave_no_sockets() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let mut held = Vec::new();
        for _ in 0..50 {
            let (made, accepted) = tokio::join!(connect("127.0.0.1", port), server.accept());
            drop(made.unwrap());
            held.push(accepted.unwrap().0);
        }
        for stream in &mut held {
            let mut bytes = [0; 8];
            assert_eq!(stream.read(&mut bytes).await.unwrap(), 0, "an end, no error");
        }
        drop(held);
        assert_eq!(waiting(port), 0);
    }
}
