//! The configuration file of the CRI server: `cri.toml`, and drop-ins beside it that say more.
//!
//! Drop-ins are read after the file, by name, and a later word replaces an earlier one. A flag of the command line goes
//! before all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use orlop_cri_server::Driver;
use orlop_image::{HostConfig, ShortNames};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The file with every key at its default, and what each means: what `orlop cri config default` prints.
pub const DEFAULT: &str = include_str!("default.toml");
/// Version of the file's layout.
const VERSION: u32 = 1;
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the files say; what they don't say stays as it is without them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CriFile {
    /// Version of the layout.
    pub version: Option<u32>,
    /// Socket of the CRI services.
    pub socket: Option<PathBuf>,
    /// Who makes the cgroups.
    pub cgroup_driver: Option<Driver>,
    /// What is logged.
    pub log: LogPart,
    /// Network plugins.
    pub network: NetworkPart,
    /// Exec, attach and port-forward.
    pub streaming: StreamingPart,
    /// Images and registries.
    pub images: ImagesPart,
    /// Devices.
    pub devices: DevicesPart,
    /// Metrics.
    pub metrics: MetricsPart,
    /// Traces.
    pub tracing: TracingPart,
    /// Runtime programs by the name of their handler.
    pub runtimes: BTreeMap<String, RuntimePart>,
    /// Settings of single registries, by `host[:port]`.
    pub registries: BTreeMap<String, HostConfig>,
}

/// What is logged.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogPart {
    /// As in `RUST_LOG`.
    pub filter: Option<String>,
}

/// A program in the place of the built-in runtime.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimePart {
    /// The program.
    pub program: PathBuf,
    /// Folder of what it keeps.
    pub root: Option<PathBuf>,
}

/// Network plugins.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkPart {
    /// Folder of the configuration lists.
    pub conf_dir: Option<PathBuf>,
    /// Folders of the plugins.
    pub bin_dirs: Option<Vec<PathBuf>>,
    /// Longest time of one plugin, in seconds.
    pub plugin_timeout_seconds: Option<u64>,
}

/// Exec, attach and port-forward.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingPart {
    /// Address of the server.
    pub address: Option<SocketAddr>,
}

/// Devices.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicesPart {
    /// Folders of CDI files.
    pub cdi_dirs: Option<Vec<PathBuf>>,
}

/// Metrics.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsPart {
    /// Address of `/metrics`.
    pub address: Option<SocketAddr>,
}

/// Traces.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingPart {
    /// A collector that takes OTLP by gRPC.
    pub endpoint: Option<String>,
    /// How many of a million calls are followed whose caller says nothing of it.
    pub sampling_rate_per_million: Option<u32>,
}

/// Images and registries.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesPart {
    /// Folders in containerd's `hosts.toml` layout.
    pub registry_config_dirs: Option<Vec<PathBuf>>,
    /// Mirrors are shown the credentials of a pull.
    pub mirrors_get_credentials: Option<bool>,
    /// What a name without a registry means.
    pub short_names: Option<ShortNames>,
    /// Folder of programs that are asked before an image is pulled.
    pub verifier_dir: Option<PathBuf>,
    /// Most programs in it.
    pub verifiers_max: Option<usize>,
    /// Longest time of each, in seconds.
    pub verifier_timeout_seconds: Option<u64>,
    /// Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// Layers of a pull that are fetched at the same time.
    pub parallel_layers: Option<usize>,
    /// Longest time without a byte of progress, in seconds.
    pub pull_progress_timeout_seconds: Option<u64>,
    /// Patterns of images that are never collected.
    pub pinned: Option<Vec<String>>,
}

/// Reads a file and its drop-ins. A file that was not asked for by name may be missing.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn load(file: &Path, must_exist: bool) -> Result<CriFile> {
    let mut all = Table::new();
    if must_exist || file.exists() {
        merge(&mut all, read(file)?);
    }
    for drop_in in drop_ins(file)? {
        merge(&mut all, read(&drop_in)?);
    }
    Value::Table(all).try_into().with_context(|| format!("{} and its drop-ins", file.display()))
}

/// The folder of drop-ins beside a file: `cri.toml.d`.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>> {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("list {}", Path::new(&folder).display()))?,
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

/// Reads one file, which has to be right by itself, so that a mistake is told with its file.
fn read(file: &Path) -> Result<Table> {
    let size = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    if size > FILE_BYTES_MAX {
        bail!("{} has {size} bytes, more than {FILE_BYTES_MAX}", file.display());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse(&text).with_context(|| format!("{}", file.display()))
}

fn parse(text: &str) -> Result<Table> {
    let table: Table = toml::from_str(text).context("it is no TOML")?;
    let checked: CriFile =
        toml::from_str(text).context("see `orlop cri config default` for the keys and their meaning")?;
    match checked.version {
        None | Some(VERSION) => Ok(table),
        Some(other) => bail!("version is {other}; this program reads version {VERSION}"),
    }
}

/// Lays a table over another; tables in it are laid over too, everything else is replaced.
fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn drop_ins_are_laid_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cri.toml");
        assert_eq!(load(&file, false).unwrap().images, ImagesPart::default());
        assert!(load(&file, true).unwrap_err().to_string().contains("cri.toml"));
        write(folder.path(), "cri.toml", "version = 1\n[images]\npinned = ['a']\nparallel_layers = 5\n");
        write(folder.path(), "cri.toml.d/20.toml", "[images]\npinned = ['b']\n");
        write(folder.path(), "cri.toml.d/10.toml", "socket = '/s'\n[images]\npinned = ['c']\n");
        write(folder.path(), "cri.toml.d/ignored.txt", "not toml");
        let read = load(&file, true).unwrap();
        assert_eq!(read.socket, Some("/s".into()));
        assert_eq!(read.images.pinned, Some(vec!["b".into()]));
        assert_eq!(read.images.parallel_layers, Some(5));
    }

    #[test]
    fn mistakes_name_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cri.toml");
        for (text, words) in [
            ("[images]\npined = []\n", "pined"),
            ("version = 2\n", "version is 2"),
            ("cgroup_driver = 'system'\n", "systemd"),
            ("[images]\nparallel_layers = 'x'\n", "parallel_layers"),
            ("[[[", "no TOML"),
        ] {
            write(folder.path(), "cri.toml.d/10-wrong.toml", text);
            let error = format!("{:#}", load(&file, false).unwrap_err());
            assert!(error.contains(words) && error.contains("10-wrong.toml"), "{error}");
        }
    }

    #[test]
    fn the_documented_file_is_right() {
        parse(DEFAULT).unwrap();
        // Every key that is shown in a comment is a key.
        let shown: String = DEFAULT
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        parse(&shown).unwrap();
    }
}
