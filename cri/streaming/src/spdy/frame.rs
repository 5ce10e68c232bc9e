//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, section 2), as much of them as streaming uses.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a frame's head.
pub(crate) const HEAD_BYTES: usize = 8;
/// The longest frame that is taken, in bytes; the format allows 16 MiB.
pub(crate) const FRAME_BYTES_MAX: usize = 1 << 20;
/// The version that control frames carry.
const VERSION: u16 = 3;
/// Flag of the last frame of a stream in this direction.
const FLAG_FIN: u8 = 1;

/// A frame; header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes of a stream.
    Data { stream: u32, fin: bool, bytes: Bytes },
    /// A new stream.
    SynStream { stream: u32, fin: bool, headers: Bytes },
    /// The answer to a new stream.
    SynReply { stream: u32, fin: bool, headers: Bytes },
    /// The end of a stream in both directions.
    RstStream { stream: u32, status: u32 },
    /// More headers of a stream.
    Headers { headers: Bytes },
    /// To be sent back as it is.
    Ping { id: u32 },
    /// No more streams.
    GoAway { last: u32, status: u32 },
    /// SETTINGS, WINDOW_UPDATE and what the future brings: no meaning here.
    Ignored,
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Longer than is taken.
    #[error("a SPDY frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Shorter than its type wants.
    #[error("a SPDY control frame of type {0} is too short")]
    TooShort(u16),
    /// Another version of SPDY.
    #[error("SPDY version {0} is not 3")]
    Version(u16),
}

/// Takes one frame off the buffer; none while it isn't whole.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    if buffer.len() < HEAD_BYTES {
        return Ok(None);
    }
    let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < HEAD_BYTES + length {
        buffer.reserve(HEAD_BYTES + length - buffer.len());
        return Ok(None);
    }
    let first = buffer.get_u32();
    let flags = buffer.get_u8();
    buffer.advance(3);
    let body = buffer.split_to(length).freeze();
    let fin = flags & FLAG_FIN != 0;
    if first & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data { stream: first, fin, bytes: body }));
    }
    let version = (first >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    decode_control(first as u16, fin, body).map(Some)
}

/// The meaning of a control frame's body.
fn decode_control(kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, FrameError> {
    let least = match kind {
        1 => 10,
        2 | 6 | 8 => 4,
        3 | 7 => 8,
        _ => return Ok(Frame::Ignored),
    };
    if body.len() < least {
        return Err(FrameError::TooShort(kind));
    }
    let id = body.get_u32();
    let stream = id & 0x7fff_ffff;
    Ok(match kind {
        1 => {
            // The associated stream, priority and slot mean nothing here.
            body.advance(6);
            Frame::SynStream { stream, fin, headers: body }
        }
        2 => Frame::SynReply { stream, fin, headers: body },
        3 => Frame::RstStream { stream, status: body.get_u32() },
        6 => Frame::Ping { id },
        7 => Frame::GoAway { last: stream, status: body.get_u32() },
        _ => Frame::Headers { headers: body },
    })
}

/// Appends a frame to the buffer.
pub(crate) fn encode(frame: &Frame, buffer: &mut BytesMut) {
    match frame {
        Frame::Data { stream, fin, bytes } => {
            buffer.put_u32(*stream);
            put_flags_and_length(buffer, *fin, bytes.len());
            buffer.extend_from_slice(bytes);
        }
        Frame::SynStream { stream, fin, headers } => {
            put_control(buffer, 1, *fin, 10 + headers.len());
            buffer.put_u32(*stream);
            buffer.put_bytes(0, 6);
            buffer.extend_from_slice(headers);
        }
        Frame::SynReply { stream, fin, headers } => {
            put_control(buffer, 2, *fin, 4 + headers.len());
            buffer.put_u32(*stream);
            buffer.extend_from_slice(headers);
        }
        Frame::RstStream { stream, status } => {
            put_control(buffer, 3, false, 8);
            buffer.put_u32(*stream);
            buffer.put_u32(*status);
        }
        Frame::Ping { id } => {
            put_control(buffer, 6, false, 4);
            buffer.put_u32(*id);
        }
        Frame::GoAway { last, status } => {
            put_control(buffer, 7, false, 8);
            buffer.put_u32(*last);
            buffer.put_u32(*status);
        }
        Frame::Headers { .. } | Frame::Ignored => {}
    }
}

fn put_control(buffer: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    buffer.put_u16(0x8000 | VERSION);
    buffer.put_u16(kind);
    put_flags_and_length(buffer, fin, length);
}

fn put_flags_and_length(buffer: &mut BytesMut, fin: bool, length: usize) {
    buffer.put_u8(if fin { FLAG_FIN } else { 0 });
    buffer.put_uint(length as u64, 3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_in_pieces() {
        let frames = [
            Frame::Data { stream: 3, fin: true, bytes: Bytes::from_static(b"hello") },
            Frame::SynStream { stream: 1, fin: false, headers: Bytes::from_static(b"h") },
            Frame::SynReply { stream: 1, fin: false, headers: Bytes::from_static(b"r") },
            Frame::RstStream { stream: 5, status: 2 },
            Frame::Ping { id: 7 },
            Frame::GoAway { last: 9, status: 0 },
        ];
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| encode(frame, &mut wire));
        let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
        for byte in wire {
            buffer.put_u8(byte);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
    }

    #[test]
    fn hostile_frames_are_refused() {
        let long = [0, 0, 0, 1, 0, 0xff, 0xff, 0xff];
        assert_eq!(decode(&mut BytesMut::from(&long[..])), Err(FrameError::TooLong(0xff_ffff)));
        let short = [0x80, 3, 0, 1, 0, 0, 0, 1, 0];
        assert_eq!(decode(&mut BytesMut::from(&short[..])), Err(FrameError::TooShort(1)));
        let other = [0x80, 2, 0, 1, 0, 0, 0, 0];
        assert_eq!(decode(&mut BytesMut::from(&other[..])), Err(FrameError::Version(2)));
    }
}
