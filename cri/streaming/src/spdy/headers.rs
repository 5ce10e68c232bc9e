//! Header blocks of SPDY/3: names and values, compressed by zlib with the protocol's dictionary, one stream per
//! direction for the life of the connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Header blocks never get longer than this, in bytes, when decompressed.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// More headers than this are refused.
const HEADERS_MAX: usize = 100;

/// The dictionary's first part: words that each stand behind their length (SPDY/3 section 2.6.10.1).
const DICTIONARY_WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// The dictionary's second part: plain text.
const DICTIONARY_TEXT: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized",
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
);

/// The zlib dictionary that both sides know.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        bytes.put_u32(word.len() as u32);
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(DICTIONARY_TEXT.as_bytes());
    bytes
}

/// Names in lower case, with their values.
pub type HeaderList = Vec<(String, String)>;

/// Why a header block can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// The compressed bytes are damaged, which ends the connection.
    #[error("SPDY header block can't be decompressed: {0}")]
    Compression(String),
    /// Too many or too long.
    #[error("SPDY header block is longer than {BLOCK_BYTES_MAX} bytes or {HEADERS_MAX} headers")]
    TooLong,
    /// Lengths that don't fit.
    #[error("SPDY header block is cut short")]
    Short,
}

/// Compresses the header blocks of one direction.
pub(crate) struct Compressor(Compress);

impl Compressor {
    pub(crate) fn new() -> Compressor {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary()).expect("a fresh zlib stream takes a dictionary");
        Compressor(zlib)
    }

    /// The block of these headers.
    pub(crate) fn compress(&mut self, headers: &[(&str, &str)]) -> Result<Bytes, HeadersError> {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(text.len() as u32);
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let before = out.len();
            self.0
                .compress_vec(&plain[used..], &mut out, FlushCompress::Sync)
                .map_err(|error| HeadersError::Compression(error.to_string()))?;
            let done = (self.0.total_in() - start) as usize == plain.len() && out.len() < out.capacity();
            if done || out.len() == before && out.len() < out.capacity() {
                return Ok(out.into());
            }
            out.reserve(256);
        }
    }
}

/// Decompresses the header blocks of one direction.
pub(crate) struct Decompressor(Decompress);

impl Decompressor {
    pub(crate) fn new() -> Decompressor {
        Decompressor(Decompress::new(true))
    }

    /// The headers of this block.
    pub(crate) fn decompress(&mut self, block: &[u8]) -> Result<HeaderList, HeadersError> {
        let mut plain: Vec<u8> = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let before = plain.len();
            match self.0.decompress_vec(&block[used..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(HeadersError::Compression("the zlib stream ended".into())),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|error| HeadersError::Compression(error.to_string()))?;
                    continue;
                }
                Err(error) => return Err(HeadersError::Compression(error.to_string())),
            }
            let used = (self.0.total_in() - start) as usize;
            if used == block.len() && plain.len() < plain.capacity() {
                return parse(&plain);
            }
            if plain.len() == before && plain.len() < plain.capacity() {
                return Err(HeadersError::Compression("no progress".into()));
            }
            if plain.len() > BLOCK_BYTES_MAX {
                return Err(HeadersError::TooLong);
            }
            plain.reserve(1024);
        }
    }
}

/// Names and values of a plain block.
fn parse(mut plain: &[u8]) -> Result<HeaderList, HeadersError> {
    let count = take_length(&mut plain)?;
    if count > HEADERS_MAX {
        return Err(HeadersError::TooLong);
    }
    (0..count).map(|_| Ok((take_text(&mut plain)?.to_ascii_lowercase(), take_text(&mut plain)?))).collect()
}

fn take_length(plain: &mut &[u8]) -> Result<usize, HeadersError> {
    if plain.len() < 4 {
        return Err(HeadersError::Short);
    }
    Ok(plain.get_u32() as usize)
}

fn take_text(plain: &mut &[u8]) -> Result<String, HeadersError> {
    let length = take_length(plain)?;
    if plain.len() < length {
        return Err(HeadersError::Short);
    }
    let (text, rest) = plain.split_at(length);
    *plain = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_has_its_known_checksum() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        // Adler-32 of the dictionary, as it stands in every SPDY/3 stream.
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_share_one_stream() {
        let (mut out, mut back) = (Compressor::new(), Decompressor::new());
        let long = "x".repeat(5000);
        for value in ["stdin", "stdout", long.as_str()] {
            let block = out.compress(&[("streamType", value)]).unwrap();
            assert_eq!(back.decompress(&block).unwrap(), [("streamtype".to_string(), value.to_string())]);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut out = Compressor::new();
        let block = out.compress(&[("a", &"x".repeat(1 << 20))]).unwrap();
        assert_eq!(Decompressor::new().decompress(&block), Err(HeadersError::TooLong));
    }
}
