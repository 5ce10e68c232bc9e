//! Decompression of layers: gzip (with concatenated members), zstd with a bounded window, plain.

use std::io::{BufReader, Cursor, Read};

use super::{UnpackError, read_error};
use crate::document::Compression;

/// Largest zstd window accepted, as a power of two: 128 MiB, the bound of the zstd tool itself.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 256 * 1024;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A reader of the plain bytes.
pub fn decompressed<'a>(
    mut source: impl Read + Send + 'a,
    compression: Compression,
) -> Result<Box<dyn Read + Send + 'a>, UnpackError> {
    let mut head = Vec::new();
    if compression == Compression::Sniff {
        source.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut head).map_err(read_error)?;
    }
    let compression = match compression {
        Compression::Sniff if head.starts_with(&GZIP_MAGIC) => Compression::Gzip,
        Compression::Sniff if head == ZSTD_MAGIC => Compression::Zstd,
        Compression::Sniff => Compression::None,
        known => known,
    };
    let buffered = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(source));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let end = buffer.len().min(1);
            self.0.read(&mut buffer[..end])
        }
    }

    #[test]
    fn the_first_bytes_tell_the_packing_however_they_come() {
        let zstd = zstd::encode_all(&b"zstd"[..], 1).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"gzip").unwrap();
        let gzip = gzip.finish().unwrap();
        // Two members in a row are one stream.
        let twice = [gzip.clone(), gzip.clone()].concat();
        for (packed, plain) in [
            (&zstd[..], &b"zstd"[..]),
            (&gzip, b"gzip"),
            (&twice, b"gzipgzip"),
            (b"plain", b"plain"),
            (b"", b""),
            (b"ab", b"ab"),
        ] {
            let mut found = Vec::new();
            decompressed(Trickle(packed), Compression::Sniff).unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, plain);
        }
    }

    #[test]
    fn rubbish_after_the_stream_is_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"gzip").unwrap();
        let packed = [gzip.finish().unwrap(), b"rubbish".to_vec()].concat();
        assert!(decompressed(&packed[..], Compression::Gzip).unwrap().read_to_end(&mut Vec::new()).is_err());
    }
}
