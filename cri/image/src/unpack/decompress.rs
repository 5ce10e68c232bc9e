//! Decompression of layers: gzip (with concatenated members), zstd with a bounded window, plain.

use std::io::{self, BufRead, BufReader, Read};

use super::{UnpackError, read_error};
use crate::document::Compression;

/// Largest zstd window accepted, as a power of two: 128 MiB, the bound of the zstd tool itself.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 256 * 1024;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A reader of the plain bytes.
pub fn decompressed<'a>(source: impl Read + 'a, compression: Compression) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let mut buffered = BufReader::with_capacity(BUFFER_BYTES, source);
    let compression = match compression {
        Compression::Sniff => sniff(&mut buffered).map_err(read_error)?,
        known => known,
    };
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered).map_err(UnpackError::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(UnpackError::Read)?;
            Box::new(decoder)
        }
        Compression::None | Compression::Sniff => Box::new(buffered),
    })
}

/// Looks at the first bytes without taking them. The reader's buffer holds at least four bytes unless the source ends.
fn sniff(source: &mut BufReader<impl Read>) -> io::Result<Compression> {
    let head = source.fill_buf()?;
    Ok(if head.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if head.starts_with(&ZSTD_MAGIC) {
        Compression::Zstd
    } else {
        Compression::None
    })
}
