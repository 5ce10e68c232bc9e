//! Which mounts of a container are the machine's, so that CRIU notes them instead of what is in them. Pure.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_container::config::Config;

/// One line of a mount table.
struct Line<'a> {
    device: &'a str,
    point: String,
}

/// Mount points of what was handed in: binds of the machine's folders, volumes, the pod's shared memory, views of images,
/// and all that is mounted below them. The others are the container's own: its root, the file systems that the
/// specification makes new, and what hides or protects parts of those.
pub(super) fn external(table: &str, config: &Config) -> Vec<String> {
    let lines: Vec<Line<'_>> = table.lines().filter_map(read).collect();
    let made: BTreeSet<&Path> = config
        .mounts
        .iter()
        .filter(|entry| !entry.is_bind() && entry.kind != "overlay")
        .map(|entry| entry.destination.as_path())
        .chain([Path::new("/")])
        .collect();
    let covers: BTreeSet<&Path> =
        config.linux.masked_paths.iter().chain(&config.linux.readonly_paths).map(std::path::PathBuf::as_path).collect();
    let is_made = |line: &Line<'_>| made.contains(Path::new(&line.point));
    let own: BTreeSet<&str> = lines.iter().filter(|line| is_made(line)).map(|line| line.device).collect();
    let handed =
        |line: &&Line<'_>| !is_made(line) && !own.contains(line.device) && !covers.contains(Path::new(&line.point));
    let points: BTreeSet<String> = lines.iter().filter(handed).map(|line| line.point.clone()).collect();
    points.into_iter().collect()
}

/// `36 35 98:0 /root /point options - type source options`, with `\040` and its like for blanks.
fn read(line: &str) -> Option<Line<'_>> {
    let mut words = line.split(' ');
    let device = words.nth(2)?;
    let point = words.nth(1)?;
    Some(Line { device, point: unescape(point) })
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use orlop_container::config::{Linux, Mount};

    use super::*;

    #[test]
    fn what_was_handed_in_is_external() {
        let entry = |destination: &str, kind: &str| Mount {
            destination: destination.into(),
            kind: kind.into(),
            ..Mount::default()
        };
        let config = Config {
            mounts: vec![
                entry("/proc", "proc"),
                entry("/dev", "tmpfs"),
                entry("/dev/shm", "bind"),
                entry("/var/run/secrets", "bind"),
                entry("/image", "overlay"),
            ],
            linux: Linux {
                masked_paths: vec!["/proc/kcore".into(), "/proc/acpi".into()],
                readonly_paths: vec!["/proc/sys".into()],
                ..Linux::default()
            },
            ..Config::default()
        };
        let table = "\
            50 40 0:60 / / rw - overlay overlay rw\n\
            51 50 0:61 / /proc rw - proc proc rw\n\
            52 50 0:62 / /dev rw - tmpfs tmpfs rw\n\
            53 52 0:50 / /dev/shm rw - tmpfs shm rw\n\
            54 50 0:30 /pods/1/token /run/secrets ro - tmpfs tmpfs rw\n\
            55 54 0:31 / /run/secrets/a\\040b ro - tmpfs tmpfs rw\n\
            56 50 0:63 / /image ro - overlay overlay ro\n\
            57 51 0:62 /null /proc/kcore rw - tmpfs tmpfs rw\n\
            58 51 0:64 / /proc/acpi ro - tmpfs tmpfs ro\n\
            59 51 0:61 /sys /proc/sys ro - proc proc rw\n\
            60 50 8:1 /etc/x /etc/hosts rw - ext4 /dev/sda1 rw\n";
        let expected = ["/dev/shm", "/etc/hosts", "/image", "/run/secrets", "/run/secrets/a b"];
        assert_eq!(external(table, &config), expected);
        assert_eq!(external("nonsense\n\n", &config), Vec::<String>::new());
    }
}
