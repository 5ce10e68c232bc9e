//! Talking netlink: messages of attributes, and a socket that asks and waits for the answer.
//!
//! Everything is synchronous and has a deadline; no runtime is needed, so that a program that does one thing and ends
//! starts fast.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Bytes of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Bytes of an attribute's own header.
const ATTRIBUTE_BYTES: usize = 4;
/// Bytes that the kernel may answer in one piece: it fills no larger ones in dumps.
const PIECE_BYTES: usize = 32 << 10;
/// Bytes that fit the send buffer of a socket on any machine.
const SEND_BYTES: libc::c_int = 128 << 10;
/// Seconds that the kernel may take for one answer.
const ANSWER_SECONDS: u64 = 10;
/// How often a dump is asked for again because what is listed has changed meanwhile.
const DUMPS_MAX: u32 = 20;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTERRUPTED: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The whole list (`NLM_F_DUMP`).
pub(crate) const DUMP: u16 = 0x300;
/// Change what is there (`NLM_F_REPLACE`).
pub(crate) const REPLACE: u16 = 0x100;
/// Fail when it is there (`NLM_F_EXCL`).
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Make it (`NLM_F_CREATE`).
pub(crate) const CREATE: u16 = 0x400;
/// The attribute holds attributes (`NLA_F_NESTED`).
pub(crate) const NESTED: u16 = 0x8000;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

/// A message without netlink's own header: a family's header and attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message that begins with a family's header.
    pub(crate) fn new(header: &[u8]) -> Message {
        Message(header.to_vec())
    }

    /// Appends bytes that are no attribute: a header within.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Message {
        self.0.extend(bytes);
        self
    }

    /// Appends an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        self.0.extend(((ATTRIBUTE_BYTES + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a text that ends with NUL.
    pub(crate) fn put_text(&mut self, kind: u16, text: &str) -> &mut Message {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Appends a number.
    pub(crate) fn put_number(&mut self, kind: u16, number: u32) -> &mut Message {
        self.put(kind, &number.to_ne_bytes())
    }

    /// Appends an attribute that holds others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.0.len();
        self.0.extend([0; ATTRIBUTE_BYTES]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self
    }
}

/// The attributes in some bytes; what is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ATTRIBUTE_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !NESTED & !0x4000, value))
    })
}

/// The attributes within the attribute of a kind.
pub(crate) fn nested(bytes: &[u8], wanted: u16) -> &[u8] {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default()
}

/// A number of 4 bytes.
pub(crate) fn number(value: &[u8]) -> u32 {
    value.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A text up to its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Why the kernel refuses, and in which words.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) source: io::Error,
    /// The kernel's own words, often none.
    pub(crate) words: String,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Refusal {
        Refusal { source, words: String::new() }
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Refusal {
        io::Error::from(errno).into()
    }
}

/// `RTMGRP_LINK`.
const NEWS_OF_LINKS: u32 = 1;

/// What a piece of an answer was, and whether what is listed has changed meanwhile.
enum Piece {
    /// More is to come.
    More { interrupted: bool },
    /// The answer is whole.
    End { interrupted: bool },
}

/// A talk with one part of the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Talk {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl AsFd for Talk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Talk {
    /// Opens a talk with routing (links, addresses, routes).
    pub(crate) fn with_routing() -> io::Result<Talk> {
        Talk::open(None)
    }

    /// Opens a talk that hears of links that come, change and go.
    pub(crate) fn with_news_of_links() -> io::Result<Talk> {
        let talk = Talk::open(None)?;
        // A socket without a name is passed over.
        rustix::net::bind(&talk.socket, &SocketAddrNetlink::new(0, NEWS_OF_LINKS))?;
        Ok(talk)
    }

    /// Takes no answer for its own that somebody else with this socket may have asked for.
    pub(crate) fn forget_answers(&self) {
        self.sequence.set(self.sequence.get().wrapping_add(1 << 16));
    }

    /// What has been told by now: kinds and bodies of messages.
    pub(crate) fn hear(&self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut buffer = vec![0; PIECE_BYTES];
        let (_, length) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT))?;
        let (mut told, mut rest) = (Vec::new(), &buffer[..length]);
        while let Some(header) = rest.get(..HEADER_BYTES) {
            let end = number(header) as usize;
            let Some(body) = rest.get(HEADER_BYTES..end) else { break };
            told.push((u16::from_ne_bytes([header[4], header[5]]), body.to_vec()));
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(told)
    }

    /// Opens a talk with netfilter.
    pub(crate) fn with_netfilter() -> io::Result<Talk> {
        Talk::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Talk> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        let limit = std::time::Duration::from_secs(ANSWER_SECONDS);
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(limit))?;
        // Errors come with words and without our own message; a kernel that can't is understood too.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the option is an int, which lives during the call, and the length is its size.
            unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), 4);
            }
        }
        Ok(Talk { socket, sequence: Cell::new(1) })
    }

    /// Asks and gives the answers: bodies of messages, none when the kernel only says yes.
    pub(crate) fn ask(&self, kind: u16, flags: u16, message: &Message) -> Result<Vec<Vec<u8>>, Refusal> {
        for _ in 0..DUMPS_MAX {
            if let Some(answers) = self.ask_once(kind, flags, message)? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "what is listed changes all the time").into())
    }

    fn ask_once(&self, kind: u16, flags: u16, message: &Message) -> Result<Option<Vec<Vec<u8>>>, Refusal> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let dump = flags & DUMP == DUMP;
        let flags = flags | NLM_F_REQUEST | if dump { 0 } else { NLM_F_ACK };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + message.0.len());
        bytes.extend(((HEADER_BYTES + message.0.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(&message.0);
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &bytes, SendFlags::empty()))?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let (_, length) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC))?;
            if length > buffer.len() {
                return Err(io::Error::other(format!("the kernel answered {length} bytes in one piece")).into());
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match read_piece(&mut rest, sequence, &mut answers)? {
                    Piece::More { interrupted: changed } => interrupted |= changed,
                    Piece::End { interrupted: changed } => return Ok((!interrupted && !changed).then_some(answers)),
                }
            }
        }
    }
}

impl Talk {
    /// Carries out a batch: several messages with their headers, of which all are done or none. An error is that of
    /// the first message that is refused.
    ///
    /// The kernel is done when it has taken the batch and tells what it has refused, so no message is asked to be
    /// acknowledged: a thousand acknowledgements fit no buffer.
    pub(crate) fn carry_out(&self, mut batch: Vec<u8>) -> Result<(), Refusal> {
        let mut at = 0;
        while let Some(header) = batch.get_mut(at..at + HEADER_BYTES) {
            let flags = u16::from_ne_bytes([header[6], header[7]]) & !NLM_F_ACK;
            header[6..8].copy_from_slice(&flags.to_ne_bytes());
            at += (number(header) as usize).next_multiple_of(4).max(HEADER_BYTES);
        }
        self.make_room(batch.len());
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &batch, SendFlags::empty()))?;
        let (mut first, mut buffer) = (Ok(()), vec![0; PIECE_BYTES]);
        loop {
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)
            });
            let mut rest = match received {
                Ok((_, length)) => &buffer[..length],
                Err(rustix::io::Errno::AGAIN) => return first,
                Err(errno) => return first.and(Err(errno.into())),
            };
            while !rest.is_empty() {
                let sequence = number(rest.get(8..).unwrap_or_default());
                let before = rest.len();
                let piece = read_piece(&mut rest, sequence, &mut Vec::new());
                first = first.and(piece.map(|_| ()));
                if rest.len() == before {
                    break;
                }
            }
        }
    }

    /// Makes the buffer large enough for one message of a size; the kernel counts more than its bytes.
    fn make_room(&self, bytes: usize) {
        let Ok(room) = libc::c_int::try_from(bytes.saturating_mul(2)) else { return };
        if room <= SEND_BYTES {
            return;
        }
        for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
            // SAFETY: the option is an int, which lives during the call, and the length is its size.
            let set = unsafe {
                libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const room).cast(), 4)
            };
            // Without privileges over the machine its limit holds; the batch may fit all the same.
            if set == 0 {
                return;
            }
        }
    }
}

/// Takes one message off an answer.
fn read_piece(rest: &mut &[u8], sequence: u32, answers: &mut Vec<Vec<u8>>) -> Result<Piece, Refusal> {
    let cut = || Refusal::from(io::Error::from(io::ErrorKind::UnexpectedEof));
    let header = rest.get(..HEADER_BYTES).ok_or_else(cut)?;
    let short = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let (length, kind, flags) = (number(header) as usize, short(4), short(6));
    let body = rest.get(HEADER_BYTES..length).ok_or_else(cut)?;
    let theirs = number(&header[8..]);
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    if theirs != sequence {
        // The end of an answer that was given up.
        return Ok(Piece::More { interrupted: false });
    }
    let interrupted = flags & NLM_F_DUMP_INTERRUPTED != 0;
    match kind {
        NLMSG_NOOP => Ok(Piece::More { interrupted }),
        NLMSG_DONE | NLMSG_ERROR => match number(body.get(..4).ok_or_else(cut)?) as i32 {
            0 => Ok(Piece::End { interrupted }),
            code => Err(Refusal { source: io::Error::from_raw_os_error(-code), words: words(kind, flags, body) }),
        },
        _ => {
            answers.push(body.to_vec());
            Ok(Piece::More { interrupted })
        }
    }
}

/// What the kernel says about an error.
fn words(kind: u16, flags: u16, body: &[u8]) -> String {
    if flags & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    // After the code there is the header of our message, and all of it when it isn't capped.
    let start = match kind {
        NLMSG_ERROR if flags & NLM_F_CAPPED != 0 => 4 + HEADER_BYTES,
        NLMSG_ERROR => 4 + (number(body.get(4..).unwrap_or_default()) as usize).next_multiple_of(4),
        _ => 4,
    };
    text(nested(body.get(start..).unwrap_or_default(), ERROR_TEXT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new(&[1, 2, 3, 4]);
        message.put_text(3, "eth0").nest(18, |inner| {
            inner.put(1, b"veth").put_number(2, 7);
        });
        let bytes = &message.0[4..];
        let found: Vec<u16> = attributes(bytes).map(|(kind, _)| kind).collect();
        assert_eq!(found, [3, 18]);
        assert_eq!(text(nested(bytes, 3)), "eth0");
        assert_eq!(number(nested(nested(bytes, 18), 2)), 7);
    }

    #[test]
    fn damaged_attributes_end_the_list() {
        for bytes in [&[][..], &[1, 0, 0], &[0, 0, 1, 0], &[200, 0, 1, 0, 5], &[3, 0, 1, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
