//! Layers that try to get out, hide, or fill the disk; and layers that are merely unusual.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use orlop_image::build::{ImageBuilder, LayerBuilder};
use tar::{EntryType, Header};

use crate::scripted::ScriptedRegistry;
use crate::support::{Bench, chain, quick};

/// Builds tar archives entry by entry, with names as they are.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(
        mut self,
        kind: EntryType,
        path: &str,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_link_name_literal(link).unwrap();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(EntryType::Regular, path, "", content.as_bytes(), |_| {})
    }

    fn directory(self, path: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, path, "", b"", |header| header.set_mode(mode))
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, path, target, b"", |_| {})
    }

    fn hardlink(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Link, path, target, b"", |_| {})
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let length = key.len() + value.len() + 3;
            let mut total = length + 1;
            while total.to_string().len() + length != total {
                total += 1;
            }
            content.extend_from_slice(format!("{total} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.add(EntryType::XHeader, "pax", "", &content, |_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Imports an image of these layers; the directories topmost first, or the error.
async fn import(bench: &Bench, layers: Vec<Vec<u8>>) -> Result<Vec<std::path::PathBuf>, String> {
    let archive = bench.directory.path().join("image.tar");
    let builder =
        layers.into_iter().fold(ImageBuilder::new(), |builder, layer| builder.layer(LayerBuilder::from_tar(layer)));
    builder.write_layout_tar(&archive, "example.com/hostile:1").unwrap();
    let ids = bench.images.import(&archive, Vec::new()).await.map_err(|error| chain(&error))?;
    Ok(bench.image(&ids[0]).lower_dirs)
}

/// A folder outside of the store with one file that must stay as it is.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("canary"), "safe").unwrap();
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn check(&self) {
        let canary = self.0.path().join("canary");
        assert_eq!(fs::read_to_string(&canary).unwrap(), "safe");
        assert_eq!(fs::metadata(&canary).unwrap().nlink(), 1, "a layer has a link to a file of the machine");
        assert_eq!(fs::read_dir(self.path()).unwrap().count(), 1);
        let mut names = [0; 256];
        let length = rustix::fs::listxattr(self.path(), &mut names[..]).unwrap();
        assert_eq!(length, 0, "{:?}", String::from_utf8_lossy(&names[..length]));
    }
}

/// Each of these layers is refused in these words, and nothing of it is kept.
async fn refuse(layers: Vec<(Tar, &str)>) {
    for (archive, part) in layers {
        let bench = Bench::new(quick());
        let error = import(&bench, vec![archive.end()]).await.unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
        bench.assert_empty();
    }
}

#[tokio::test]
async fn case_01_paths_that_leave_the_layer() {
    let outside = Outside::new();
    let long = |length: usize, letter: &str| letter.repeat(length).into_bytes();
    refuse(vec![
        (Tar::default().file("../../evil", "x"), "\"..\""),
        (Tar::default().file("a/../../evil", "x"), "\"..\""),
        (Tar::default().file("..", "x"), "\"..\""),
        (Tar::default().file(".", "x"), "root of a layer"),
        (Tar::default().symlink("./", "/etc"), "root of a layer"),
        (Tar::default().file("f", "x").file("f/below", "x"), "f/below"),
        (Tar::default().symlink("loop", "loop").file("loop/x", "x"), "loop"),
        (Tar::default().pax(&[("path", &long(400, "n/"))]).file("x", ""), "components"),
        (Tar::default().pax(&[("path", &long(300, "n"))]).file("x", ""), "longer than 255"),
        (Tar::default().pax(&[("path", &long(5000, "n"))]).file("x", ""), "5000 bytes long"),
        (Tar::default().pax(&[("linkpath", &long(5000, "n"))]).symlink("x", ""), "5000 bytes long"),
        (Tar::default().pax(&[("path", b"etc\0/../x")]).file("x", ""), "NUL"),
        (Tar::default().pax(&[("linkpath", b"etc\0x")]).symlink("x", ""), "NUL"),
    ])
    .await;
    let bench = Bench::new(quick());
    let confined = Tar::default()
        .directory("./", 0o755)
        .symlink("out", outside.path())
        .file("out/canary", "evil")
        .symlink("up", "../../../../../../..")
        .file("up/inside", "x")
        .file("/absolute", "x")
        .symlink("p", "/proc/self/root")
        .file("p/escaped", "x")
        .file("sub/./double//slash", "x");
    let lower = import(&bench, vec![confined.end()]).await.unwrap();
    outside.check();
    let shown = format!("{}/canary", outside.path());
    for inside in ["inside", "absolute", "sub/double/slash", &shown[1..], "proc/self/root/escaped"] {
        assert!(fs::symlink_metadata(lower[0].join(inside)).is_ok(), "{inside}");
    }
    assert!(!Path::new("/escaped").exists() && !Path::new("/inside").exists());
}

#[tokio::test]
async fn case_03_hardlinks_to_files_of_the_machine() {
    let outside = Outside::new();
    let canary = format!("{}/canary", outside.path());
    let shadow = || fs::metadata("/etc/shadow").unwrap().nlink();
    let before = shadow();
    refuse(vec![
        (Tar::default().hardlink("a", "../../etc/shadow"), "\"..\""),
        (Tar::default().hardlink("a", "/etc/shadow"), "in no layer"),
        (Tar::default().hardlink("a", "/proc/self/exe"), "in no layer"),
        (Tar::default().hardlink("a", &canary), "in no layer"),
        (Tar::default().symlink("l", outside.path()).hardlink("a", "l/canary"), "in no layer"),
        (Tar::default().directory("d/", 0o755).hardlink("a", "d"), "directory"),
    ])
    .await;
    // A link to a symlink is one more name of that symlink, whatever it leads to.
    let bench = Bench::new(quick());
    let archive = Tar::default().symlink("l", &canary).hardlink("a", "l").file("a", "own");
    let lower = import(&bench, vec![archive.end()]).await.unwrap();
    assert_eq!(fs::read_to_string(lower[0].join("a")).unwrap(), "own");
    assert!(fs::symlink_metadata(lower[0].join("l")).unwrap().is_symlink());
    outside.check();
    assert_eq!(shadow(), before);
}

#[tokio::test]
async fn case_04_whiteouts_of_what_is_not_the_layers() {
    let outside = Outside::new();
    refuse(vec![
        (Tar::default().file("a/.wh.", ""), "whiteout"),
        (Tar::default().file("a/.wh..", ""), "whiteout"),
        (Tar::default().file("a/.wh...", ""), "whiteout"),
        (Tar::default().file(".wh.a/b", ""), "whiteout"),
        (Tar::default().directory("d/.wh.a/", 0o755).file("d/.wh.a/b/c", ""), "whiteout"),
    ])
    .await;
    let bench = Bench::new(quick());
    let archive = Tar::default()
        .symlink("out", outside.path())
        .file("out/.wh.canary", "")
        .file("out/.wh..wh..opq", "")
        .file(".wh..wh.plnk/1.2", "what aufs noted");
    let lower = import(&bench, vec![archive.end()]).await.unwrap();
    outside.check();
    let hidden = fs::symlink_metadata(lower[0].join(&outside.path()[1..]).join("canary")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert!(fs::symlink_metadata(lower[0].join(".wh..wh.plnk")).is_err());

    // Layers that add and hide in turns, unpacked one by one and all at once.
    let layers = (0..8).map(|number: usize| {
        let archive = Tar::default().file("d/last", &number.to_string()).file(&format!("d/{number}"), "x");
        let archive = archive.file(&format!("d/.wh.{}", number.wrapping_sub(1)), "");
        if number == 4 { archive.file("d/.wh..wh..opq", "") } else { archive }
    });
    let layout = tempfile::tempdir().unwrap();
    let image = layers.fold(ImageBuilder::new(), |image, tar| image.layer(LayerBuilder::from_tar(tar.end())));
    image.write_layout_dir(layout.path(), "test:1").unwrap();
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    let mut seen = Vec::new();
    for parallel in [1, 8] {
        let bench = Bench::with(|config| (config.registries, config.parallel_layers) = (quick(), parallel));
        bench.images.pull(&registry.reference("1"), None).await.unwrap();
        // Folders that no layer describes, and whiteouts, are as old as they are.
        let list = |root: &Path| {
            let script = format!(
                "cd {} && find . -printf '%P %y %m %s ' '(' -type d -o -type c -o -printf %Ts ')' -printf '\n' | sort
                 getfattr -dR -m - . 2>/dev/null | sort",
                root.display()
            );
            crate::support::run("sh", &["-c", &script])
        };
        seen.push(bench.image(&registry.reference("1")).lower_dirs.iter().map(|root| list(root)).collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
}

/// What lies in a tree: names, kinds, sizes of files, and targets of links.
fn list(root: &Path) -> Vec<String> {
    let script = format!("cd {} && find . -mindepth 1 -printf '%P|%y|%s|%l\n' | sort", root.display());
    let whole = crate::support::run("sh", &["-c", &script]);
    // The size of a directory is the file system's business.
    whole
        .lines()
        .map(|line| match line.split_once("|d|") {
            Some((name, _)) => format!("{name}|d"),
            None => line.to_owned(),
        })
        .collect()
}

/// What is refused of the archives below; all others have to be read as GNU tar reads them.
const REFUSED: [&str; 16] = [
    "two PAX headers",
    "two paths",
    "one is forgotten",
    "a sign",
    "less than nothing",
    "hexadecimal",
    "an empty size",
    "an empty path",
    "2^63 in PAX",
    "2^64 in PAX",
    "2^63",
    "sparse in PAX",
    "sparse",
    "a size for all",
    "a NUL in the long name",
    "an unknown type",
];

#[tokio::test]
async fn case_05_archives_that_two_readers_could_read_in_two_ways() {
    let inner = Tar::default().file("smuggled", "x").0;
    let sized = |archive: Tar, kind: EntryType, size: u64, content: &[u8]| {
        let mut archive = archive.add(kind, "outer", "target", b"", |header| header.set_size(size));
        archive.0.extend_from_slice(content);
        archive
    };
    let plain = Tar::default;
    let regular = EntryType::Regular;
    let archives = vec![
        ("PAX says more", sized(plain().pax(&[("size", b"1024")]), regular, 0, &inner)),
        ("PAX says less", sized(plain().pax(&[("size", b"0")]), regular, 1024, &inner)),
        ("PAX size twice", sized(plain().pax(&[("size", b"0"), ("size", b"1024")]), regular, 0, &inner)),
        ("two PAX headers", sized(plain().pax(&[("size", b"1024")]).pax(&[("size", b"0")]), regular, 0, &inner)),
        ("two paths", sized(plain().pax(&[("path", b"a")]).pax(&[("path", b"b")]), regular, 0, b"")),
        ("one is forgotten", sized(plain().pax(&[("path", b"a")]).pax(&[("mtime", b"1")]), regular, 0, b"")),
        ("a sign", sized(plain().pax(&[("size", b"+1024")]), regular, 0, &inner)),
        ("less than nothing", sized(plain().pax(&[("size", b"-1")]), regular, 0, &inner)),
        ("hexadecimal", sized(plain().pax(&[("size", b"0x400")]), regular, 0, &inner)),
        ("an empty size", sized(plain().pax(&[("size", b"")]), regular, 1024, &inner)),
        ("an empty path", sized(plain().pax(&[("path", b"")]), regular, 1024, &inner)),
        ("2^63 in PAX", sized(plain().pax(&[("size", b"9223372036854775808")]), regular, 0, &inner)),
        ("2^64 in PAX", sized(plain().pax(&[("size", b"18446744073709551616")]), regular, 0, &inner)),
        ("2^63", sized(plain(), regular, 1 << 63, &inner)),
        ("sparse in PAX", sized(plain().pax(&[("GNU.sparse.major", b"1"), ("size", b"0")]), regular, 1024, &inner)),
        ("sparse", sized(plain(), EntryType::GNUSparse, 1024, &inner)),
        ("a sized folder", sized(plain(), EntryType::Directory, 1024, &inner)),
        ("a sized symlink", sized(plain(), EntryType::Symlink, 1024, &inner)),
        ("a sized pipe", sized(plain(), EntryType::Fifo, 1024, &inner)),
        ("a sized hardlink", sized(plain().file("target", "x"), EntryType::Link, 1024, &inner)),
        ("a folder sized in PAX", sized(plain().pax(&[("size", b"1024")]), EntryType::Directory, 0, &inner)),
        ("a sized file with a slash", plain().add(regular, "outer/", "", &inner, |_| {})),
        ("a size for all", {
            let archive = plain().pax(&[("size", b"1024")]);
            sized(retype(archive, b'g'), regular, 0, &inner)
        }),
        ("a long name and a path", {
            let archive = plain().add(EntryType::GNULongName, "n", "", b"long\0", |_| {}).pax(&[("path", b"short")]);
            sized(archive, regular, 0, b"")
        }),
        ("a NUL in the long name", {
            sized(plain().add(EntryType::GNULongName, "n", "", b"a\0b\0", |_| {}), regular, 0, b"")
        }),
        ("after a block of zeros", Tar([&[0; 512][..], &inner].concat())),
        ("an unknown type", sized(plain(), EntryType::new(b'Z'), 1024, &inner)),
        ("a prefix in the form of GNU", {
            plain().add(regular, "outer", "", b"", |header| header.as_mut_bytes()[345..351].copy_from_slice(b"prefix"))
        }),
    ];
    let directory = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    for (name, archive) in archives {
        let (file, theirs) = (directory.path().join("a.tar"), directory.path().join(name.replace(' ', "-")));
        let bytes = archive.end();
        fs::write(&file, &bytes).unwrap();
        fs::create_dir(&theirs).unwrap();
        let bench = Bench::new(quick());
        let ours = import(&bench, vec![bytes]).await;
        let mut tar = std::process::Command::new("tar");
        let output = tar.arg("-xpf").arg(&file).arg("-C").arg(&theirs).output().unwrap();
        match ours {
            Ok(lower) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(list(&lower[0]), list(&theirs), "{name}; GNU tar said {said:?}");
            }
            Err(_) => {
                refused.push(name);
                bench.assert_empty();
            }
        }
    }
    assert_eq!(refused, REFUSED);
}

/// Gives the first entry of an archive another type.
fn retype(mut archive: Tar, kind: u8) -> Tar {
    let header = Header::from_byte_slice(archive.0[..512].try_into().unwrap());
    let mut header = header.clone();
    header.set_entry_type(EntryType::new(kind));
    header.set_cksum();
    archive.0[..512].copy_from_slice(header.as_bytes());
    archive
}

#[tokio::test]
async fn everything_a_layer_may_have_arrives() {
    let bench = Bench::new(quick());
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let archive = Tar::default()
        .directory("./", 0o755)
        .directory("tmp/", 0o1777)
        .add(EntryType::Regular, "setuid", "", b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(7);
            header.set_gid(8);
        })
        .hardlink("linked", "setuid")
        .add(EntryType::Char, "null", "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_mode(0o666);
        })
        .add(EntryType::Fifo, "pipe", "", b"", |header| header.set_mode(0o622))
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.a", b"b"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("mtime", b"5.25"),
        ])
        .file("capable", "x")
        .pax(&[("path", long.as_bytes()), ("uid", b"3000000")])
        .file("short", "long")
        .file("twice", "first")
        .file("twice", "second")
        .symlink("becomes-directory", "/etc")
        .directory("becomes-directory/", 0o700)
        .file("becomes-directory/file", "x");
    let root = &import(&bench, vec![archive.end()]).await.unwrap()[0];
    let of = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!((of("setuid").mode() & 0o7777, of("setuid").uid(), of("setuid").gid()), (0o4755, 7, 8));
    assert_eq!(of("setuid").ino(), of("linked").ino());
    assert_eq!(of("tmp").mode() & 0o7777, 0o1777);
    assert!(
        of("null").file_type().is_char_device()
            && of("null").rdev() == rustix::fs::makedev(1, 3)
            && of("null").mode() & 0o777 == 0o666
    );
    assert!(of("pipe").file_type().is_fifo());
    assert_eq!((of("capable").mtime(), of("capable").mtime_nsec()), (5, 250_000_000));
    assert_eq!((fs::read_to_string(root.join(&long)).unwrap().as_str(), of(&long).uid()), ("long", 3_000_000));
    assert_eq!(fs::read_to_string(root.join("twice")).unwrap(), "second");
    assert!(of("becomes-directory").is_dir());
    let attribute = |name: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(root.join("capable"), name, &mut value[..]).map(|length| value[..length].to_vec())
    };
    assert_eq!(attribute("security.capability").unwrap(), capability);
    assert!(attribute("trusted.overlay.opaque").is_err() && attribute("user.overlay.opaque").is_err());
}

#[tokio::test]
async fn whiteouts_take_the_form_of_overlayfs_and_the_merged_tree_is_right() {
    let bench = Bench::new(quick());
    let base = Tar::default()
        .directory("d/", 0o750)
        .file("d/gone", "x")
        .file("d/kept", "x")
        .directory("o/", 0o755)
        .file("o/hidden", "x")
        .file("both", "old")
        .file("target", "linked");
    let top = Tar::default()
        .file("d/.wh.gone", "")
        .file("o/.wh..wh..opq", "")
        .file("o/new", "x")
        .file("both", "new")
        .file(".wh.both", "")
        .file(".wh..wh.plnk", "")
        .hardlink("link-down", "target");
    let lower = import(&bench, vec![base.end(), top.end()]).await.unwrap();
    let gone = fs::symlink_metadata(lower[0].join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(
        fs::metadata(lower[0].join("d")).unwrap().mode() & 0o7777,
        0o750,
        "a directory that is only implied looks as below"
    );
    assert_eq!(fs::read_to_string(lower[0].join("link-down")).unwrap(), "linked");
    let mut value = [0; 8];
    assert_eq!(rustix::fs::lgetxattr(lower[0].join("o"), "trusted.overlay.opaque", &mut value[..]).unwrap(), 1);
    assert_eq!(fs::read_to_string(lower[0].join("both")).unwrap(), "new");
    // The kernel's own view, in a mount namespace that ends with the command.
    let merged = bench.directory.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let (top, below, merged) = (lower[0].display(), lower[1].display(), merged.display());
    let script = format!(
        "mount -t overlay overlay -o lowerdir={top}:{below} {merged} && cd {merged} && find . | sort | tr '\\n' ' '"
    );
    let seen = crate::support::run("unshare", &["-m", "sh", "-c", &script]);
    assert_eq!(seen.trim(), ". ./both ./d ./d/kept ./link-down ./o ./o/new ./target");
}

#[tokio::test]
async fn bounds_hold() {
    let mut bench = Bench::new(quick());
    bench.config.limits.bytes_max = 1 << 20;
    bench.config.limits.entries_max = 50;
    let bench = bench.reopen();
    let huge = Tar::default().add(EntryType::Regular, "zeros", "", &vec![0; 2 << 20], |_| {}).end();
    assert!(import(&bench, vec![huge]).await.unwrap_err().contains("more than 1048576 bytes"));
    let many = (0..60).fold(Tar::default(), |tar, number| tar.file(&format!("f{number}"), "")).end();
    assert!(import(&bench, vec![many]).await.unwrap_err().contains("more than 50 entries"));
    let claims = Tar::default().add(EntryType::Regular, "claim", "", b"", |header| header.set_size(1 << 60)).end();
    assert!(import(&bench, vec![claims]).await.unwrap_err().contains("in the middle of a file"));
    let pax = Tar::default().add(EntryType::XHeader, "pax", "", b"", |header| header.set_size(1 << 40)).end();
    assert!(import(&bench, vec![pax]).await.unwrap_err().contains("1048576 at most"));
    let error = import(&bench, vec![b"no tar at all".repeat(100)]).await.unwrap_err();
    assert!(error.contains("checksum"), "{error}");
    bench.assert_empty();
    let mut bench = bench;
    bench.config.limits.free_bytes_min = u64::MAX;
    let bench = bench.reopen();
    let error = import(&bench, vec![Tar::default().file("f", "x").end()]).await.unwrap_err();
    assert!(error.contains("bytes are free"), "{error}");
    bench.assert_empty();
}

#[tokio::test]
async fn nobody_else_can_enter_the_store() {
    let bench = Bench::new(quick());
    let archive = Tar::default().add(EntryType::Regular, "setuid", "", b"x", |header| header.set_mode(0o4755)).end();
    let lower = import(&bench, vec![archive]).await.unwrap();
    for directory in
        [bench.state(""), bench.state("layers"), bench.state("names"), lower[0].parent().unwrap().to_path_buf()]
    {
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700, "{}", directory.display());
    }
}

#[tokio::test]
async fn deep_trees_are_removed() {
    let bench = Bench::new(quick());
    // Symlinks to the deepest directory so far make a tree deeper than any single path may be.
    let mut archive = Tar::default();
    let part = "n/".repeat(200);
    for number in 0..4 {
        let prefix = if number == 0 { String::new() } else { format!("s{}/", number - 1) };
        archive = archive.pax(&[("path", format!("{prefix}{part}f").as_bytes())]).file("x", "");
        archive = archive
            .pax(&[("path", format!("s{number}").as_bytes()), ("linkpath", format!("/{prefix}{part}").as_bytes())])
            .symlink("x", "");
    }
    let error = import(&bench, vec![archive.end()]).await.unwrap_err();
    assert!(error.contains("measure"), "{error}");
    bench.assert_empty();
}

#[tokio::test]
async fn archives_of_gnu_tar_unpack_as_gnu_tar_does_it() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let script = format!(
        "set -e; mkdir -p {0}/a/b {0}/sticky && cd {0} && cp -a /etc/default a/ && dd if=/dev/urandom of=a/big bs=1000 count=700 status=none \
         && ln a/big a/b/linked && ln -s ../big a/b/soft && ln -s /nowhere dangling && mkfifo pipe && chmod 1777 sticky && chmod 6755 a/big \
         && chown 70000:3000000 sticky && touch -d '2001-02-03 04:05:06.123456789' a/b/soft a/big && mkdir -p {1} && echo deep > {1}/{2} \
         && printf 'x' > \"$(printf 'odd \\303\\251 \\t name')\" && setfattr -n user.key -v value a/big",
        tree.display(),
        "d/".repeat(60),
        "n".repeat(200),
    );
    let script = if Path::new("/usr/bin/setfattr").exists() {
        script
    } else {
        script.replace(" && setfattr -n user.key -v value a/big", "")
    };
    crate::support::run("sh", &["-c", &script]);
    let list = |root: &Path, format: &str| {
        crate::support::run("sh", &["-c", &format!("cd {} && find . -printf '{format}' | sort", root.display())])
    };
    for (kind, format) in [("gnu", "%P|%y|%m|%U|%G|%n|%l|%s %Ts\\n"), ("posix", "%P|%y|%m|%U|%G|%n|%l|%s %T@\\n")] {
        let archive = directory.path().join("tree.tar");
        let packed = format!("--format={kind}");
        crate::support::run(
            "tar",
            &["-C", tree.to_str().unwrap(), &packed, "--xattrs", "-cf", archive.to_str().unwrap(), "."],
        );
        let theirs = directory.path().join(kind);
        fs::create_dir(&theirs).unwrap();
        crate::support::run(
            "tar",
            &["-C", theirs.to_str().unwrap(), "--xattrs", "--numeric-owner", "-xpf", archive.to_str().unwrap()],
        );
        let bench = Bench::new(quick());
        let ours = import(&bench, vec![fs::read(&archive).unwrap()]).await.unwrap().remove(0);
        // Directory sizes are the file system's business.
        let names = |root: &Path| {
            list(root, format)
                .lines()
                .map(|line| {
                    if line.contains("|d|") {
                        line.split(' ').next().unwrap().rsplit_once('|').unwrap().0.to_owned()
                    } else {
                        line.to_owned()
                    }
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&ours), names(&theirs), "{kind}");
        assert_eq!(fs::read(ours.join("a/big")).unwrap(), fs::read(tree.join("a/big")).unwrap());
    }
}
