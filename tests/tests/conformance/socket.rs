//! A client of WebSockets, as far as answers of the API need one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use orlop_tests::cluster::Cluster;

/// How long the other side may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open WebSocket, from which messages are read.
pub struct Socket {
    stream: UnixStream,
}

impl Socket {
    /// Asks for a path of the API with this protocol.
    ///
    /// # Panics
    /// When the server does not change to it.
    pub fn open(cluster: &Cluster, path: &str, protocol: &str) -> Socket {
        let mut stream = UnixStream::connect(cluster.world.folder().join("api.sock")).expect("reach the API");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            let read = stream.read(&mut byte).expect("read the answer");
            assert!(read == 1, "the API closed the connection: {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let chosen = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-protocol"));
        assert_eq!(chosen.map(|(_, value)| value.trim()), Some(protocol), "{head}");
        Socket { stream }
    }

    /// The next message that holds something, until the other side closes.
    ///
    /// # Panics
    /// When it is silent for too long or sends what is no message.
    pub fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            let head: [u8; 2] = self.bytes()?;
            let (last, kind) = (head[0] & 0x80 != 0, head[0] & 0x0f);
            assert!(head[1] & 0x80 == 0, "a server does not mask");
            assert!(last, "a message in several frames");
            let length = match head[1] {
                126 => usize::from(u16::from_be_bytes(self.bytes()?)),
                127 => usize::try_from(u64::from_be_bytes(self.bytes()?)).unwrap(),
                length => usize::from(length),
            };
            assert!(length < 1 << 20, "a message of {length} bytes");
            let mut message = vec![0; length];
            self.stream.read_exact(&mut message).expect("read a message");
            match kind {
                1 | 2 if !message.is_empty() => return Some(message),
                8 => return None,
                _ => {}
            }
        }
    }

    /// So many bytes, unless the other side has closed.
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => panic!("read a message: {error}"),
        }
    }
}
