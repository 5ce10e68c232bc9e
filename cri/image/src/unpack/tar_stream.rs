//! A strict reader of tar streams: ustar, GNU long names and PAX, each part bounded.
//!
//! Two readers of one archive must see the same files, so whatever is ambiguous is refused: bad checksums, sparse
//! files, global headers that change names or sizes, sizes that don't fit.

use std::io::{self, Read};

use tar::Header;

use super::{UnpackError, read_error};

const BLOCK: usize = 512;
/// Largest PAX header or long name, in bytes.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// Longest path or link target, in bytes (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Hard link to an earlier entry.
    Hardlink,
    /// Character device.
    CharacterDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
}

/// One entry, after all extensions are applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path as the archive has it.
    pub path: Vec<u8>,
    /// Kind.
    pub kind: EntryKind,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Bytes of content that follow; 0 for everything but files.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Nanoseconds of the same.
    pub mtime_nanoseconds: u32,
    /// Device numbers, major and minor.
    pub device: (u32, u32),
    /// Extended attributes by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// The path for messages.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).chars().take(300).collect()
    }
}

/// Extensions that wait for their entry.
#[derive(Default)]
struct Extensions {
    has_pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Entries of a tar stream, in order. Content of an entry is read from the stream itself (`Read`) before the next one.
pub struct TarStream<R> {
    source: R,
    /// Content of the present entry not yet read.
    content: u64,
    /// Padding after it.
    padding: u64,
    /// Bytes taken from the source so far.
    position: u64,
}

impl<R: Read> TarStream<R> {
    /// Reads from the beginning of an archive.
    pub fn new(source: R) -> Self {
        Self { source, content: 0, padding: 0, position: 0 }
    }

    /// Offset in the source where the content of the present entry begins, before any of it was read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; none at the end mark or the end of the source.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.read_header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| UnpackError::Tar("tar header: size is no number".into()))?;
            match header.entry_type().as_byte() {
                b'L' => extensions.path = Some(strip_nul(self.read_extension(size)?)),
                b'K' => extensions.link = Some(strip_nul(self.read_extension(size)?)),
                b'x' => {
                    // Others forget the first one, or don't.
                    if std::mem::replace(&mut extensions.has_pax, true) {
                        return Err(UnpackError::Tar("two PAX headers for one entry".into()));
                    }
                    let records = self.read_extension(size)?;
                    read_pax(&records, &mut extensions)?;
                }
                b'g' => {
                    let records = self.read_extension(size)?;
                    check_global(&records)?;
                }
                _ => return self.finish_entry(&header, size, extensions).map(Some),
            }
        }
    }

    fn skip_rest(&mut self) -> Result<(), UnpackError> {
        let (content, rest) = (self.content, self.content + self.padding);
        (self.content, self.padding) = (0, 0);
        let copied = io::copy(&mut (&mut self.source).take(rest), &mut io::sink()).map_err(read_error)?;
        self.position += copied;
        // Some tools write no padding after the last file, and no end mark.
        if copied < content { Err(truncated()) } else { Ok(()) }
    }

    /// The next header block. One zero block, or a clean end, ends the archive.
    fn read_header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        self.position += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The checksum counts its own eight bytes as spaces.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(UnpackError::Tar(
                "tar header with a wrong checksum: the archive is damaged, or no tar archive".into(),
            ));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(UnpackError::TooLarge(format!(
                "tar extension header of {size} bytes, {EXTENSION_BYTES_MAX} at most"
            )));
        }
        let mut bytes = vec![0; size as usize];
        self.source.read_exact(&mut bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof { truncated() } else { read_error(error) }
        })?;
        self.position += size;
        self.padding = padding(size);
        self.skip_rest()?;
        Ok(bytes)
    }

    fn finish_entry(
        &mut self,
        header: &Header,
        header_size: u64,
        extensions: Extensions,
    ) -> Result<Entry, UnpackError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse =
            |why: String| UnpackError::Entry { entry: String::from_utf8_lossy(&path).chars().take(300).collect(), why };
        let kind = kind_of(header.entry_type().as_byte(), &path).map_err(refuse)?;
        let link =
            extensions.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default();
        for (what, bytes) in [("path", &path), ("link target", &link)] {
            if bytes.len() > PATH_BYTES_MAX {
                return Err(refuse(format!("its {what} is {} bytes long, {PATH_BYTES_MAX} at most", bytes.len())));
            }
            if bytes.contains(&0) {
                return Err(refuse(format!("its {what} holds a NUL byte")));
            }
        }
        let number = |what: &str, value: Option<u64>, field: io::Result<u64>| -> Result<u32, UnpackError> {
            let value = value.map_or(field, Ok).map_err(|_| refuse(format!("its {what} is no number")))?;
            u32::try_from(value).map_err(|_| refuse(format!("its {what} {value} does not fit 32 bits")))
        };
        let uid = number("uid", extensions.uid, header.uid())?;
        let gid = number("gid", extensions.gid, header.gid())?;
        let mode = header.mode().map_err(|_| refuse("its mode is no number".into()))? & 0o7777;
        let mtime = extensions.mtime.unwrap_or_else(|| (header.mtime().unwrap_or(0).min(i64::MAX as u64) as i64, 0));
        let device = match kind {
            EntryKind::CharacterDevice | EntryKind::BlockDevice => {
                let part = |field: io::Result<Option<u32>>| {
                    field.ok().flatten().ok_or_else(|| refuse("its device number is missing".into()))
                };
                (part(header.device_major())?, part(header.device_minor())?)
            }
            _ => (0, 0),
        };
        // Only files have content: other kinds may carry a size, but no bytes follow (as GNU tar and Go read it).
        let size = if kind == EntryKind::File { extensions.size.unwrap_or(header_size) } else { 0 };
        self.content = size;
        self.padding = padding(size);
        Ok(Entry {
            kind,
            link,
            size,
            mode,
            uid,
            gid,
            mtime_seconds: mtime.0,
            mtime_nanoseconds: mtime.1,
            device,
            xattrs: extensions.xattrs,
            path,
        })
    }
}

/// The content of the present entry.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.content == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let count = self.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar archive ends in the middle of a file"));
        }
        self.content -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn kind_of(flag: u8, path: &[u8]) -> Result<EntryKind, String> {
    Ok(match flag {
        // Archives older than ustar mark directories by a slash.
        b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' => EntryKind::File,
        b'1' => EntryKind::Hardlink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharacterDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err("sparse files are not supported: make the archive without --sparse".into()),
        other => return Err(format!("its type {:?} is not supported", char::from(other))),
    })
}

fn truncated() -> UnpackError {
    UnpackError::Tar("the tar archive ends early".into())
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn strip_nul(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

/// Splits PAX records (`<length> <key>=<value>\n`).
fn pax_records(records: &[u8]) -> Result<Vec<(&str, &[u8])>, UnpackError> {
    let wrong = || UnpackError::Tar("PAX header: a record is not \"<length> <key>=<value>\"".into());
    let mut found = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').filter(|at| *at <= 10).ok_or_else(wrong)?;
        let length = decimal(&rest[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| wrong())?;
        found.push((key, &record[equals + 1..]));
        rest = &rest[length..];
    }
    Ok(found)
}

/// Digits alone: Rust would take a plus sign too, which other readers don't.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

fn read_pax(records: &[u8], extensions: &mut Extensions) -> Result<(), UnpackError> {
    for (key, value) in pax_records(records)? {
        let wrong = || UnpackError::Tar(format!("PAX header: {key} is no number"));
        let number = || decimal(value).ok_or_else(wrong);
        match key {
            "path" => extensions.path = Some(value.to_vec()),
            "linkpath" => extensions.link = Some(value.to_vec()),
            "size" => extensions.size = Some(number()?),
            "uid" => extensions.uid = Some(number()?),
            "gid" => extensions.gid = Some(number()?),
            "mtime" => extensions.mtime = Some(parse_time(value).ok_or_else(wrong)?),
            _ if key.starts_with("GNU.sparse.") => {
                return Err(UnpackError::Tar(
                    "sparse files are not supported: make the archive without --sparse".into(),
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    extensions.xattrs.retain(|(known, _)| known != name);
                    extensions.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// A global header may hold comments; one that renames or resizes every entry is read differently by different tools.
fn check_global(records: &[u8]) -> Result<(), UnpackError> {
    for (key, _) in pax_records(records)? {
        if matches!(key, "path" | "linkpath" | "size") || key.starts_with("GNU.sparse.") {
            return Err(UnpackError::Tar(format!("global PAX header sets {key}, which is refused")));
        }
    }
    Ok(())
}

/// Seconds with a fraction: `1700000000.123`, `-1.5`.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(if negative && nanoseconds > 0 {
        (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &str, flag: u8, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn pax(records: &[(&str, &str)], flag: u8) -> Vec<u8> {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length.to_string().len() + rest.len() != length {
                length += 1;
            }
            content.extend_from_slice(format!("{length}{rest}").as_bytes());
        }
        raw("PaxHeaders/x", flag, &content)
    }

    fn entries(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, UnpackError> {
        let mut stream = TarStream::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = stream.next_entry()? {
            let mut content = Vec::new();
            stream.read_to_end(&mut content).map_err(UnpackError::Read)?;
            found.push((entry.shown(), content));
        }
        Ok(found)
    }

    #[test]
    fn names_and_sizes_of_extensions_win() {
        let inner = raw("smuggled", b'0', b"x");
        let mut archive = pax(&[("path", "long/name"), ("size", &inner.len().to_string())], b'x');
        let mut file = raw("short", b'0', b"");
        file.extend_from_slice(&inner);
        archive.extend_from_slice(&file);
        archive.extend_from_slice(&raw("next", b'0', b"n"));
        archive.extend_from_slice(&[0; 1024]);
        // The size of the PAX header decides, so what lies inside the content is no entry.
        assert_eq!(
            entries(&archive).unwrap(),
            vec![("long/name".to_owned(), inner), ("next".to_owned(), b"n".to_vec())]
        );
    }

    #[test]
    fn damaged_and_ambiguous_archives_are_refused() {
        let mut wrong_sum = raw("a", b'0', b"x");
        wrong_sum[0] = b'b';
        let table: Vec<(Vec<u8>, &str)> = vec![
            (wrong_sum, "checksum"),
            (raw("a", b'0', b"x")[..512].to_vec(), "middle of a file"),
            (raw("a", b'S', b""), "sparse"),
            (raw("a", b'Z', b""), "not supported"),
            ([pax(&[("GNU.sparse.major", "1")], b'x'), raw("a", b'0', b"")].concat(), "sparse"),
            ([pax(&[("path", "x")], b'g'), raw("a", b'0', b"")].concat(), "global"),
            ([pax(&[("size", "-1")], b'x'), raw("a", b'0', b"")].concat(), "size"),
            ([pax(&[("path", "a\0b")], b'x'), raw("a", b'0', b"")].concat(), "NUL"),
            ([pax(&[("path", &"x/".repeat(3000))], b'x'), raw("a", b'0', b"")].concat(), "bytes long"),
            ([raw("x", b'x', b"99 path=a\n"), raw("a", b'0', b"")].concat(), "record"),
            (b"<html>".repeat(200), "checksum"),
        ];
        for (archive, part) in table {
            let error = entries(&archive).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(parse_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time(b"7"), Some((7, 0)));
        assert_eq!(parse_time(b"x"), None);
        assert_eq!(parse_time(b"1.x"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000)) {
            let _ = entries(&bytes);
        }
    }
}
