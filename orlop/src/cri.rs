//! `orlop cri`: the container runtime alone, for a kubelet, `crictl` or `orlop agent`.

mod file;
mod reload;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use orlop_cri_server::{CriConfig, Driver, RuntimeProgram, TracingConfig, serve};
use orlop_image::{HostConfig, ImageConfig};
use orlop_network::NetworkConfig;
use tokio_util::sync::CancellationToken;

use self::file::{
    CriFile, DevicesPart, ImagesPart, LogPart, MetricsPart, NetworkPart, RuntimePart, StreamingPart, TracingPart,
};
pub use self::reload::configuration;
use crate::layout::{Instance, Layout};
use crate::{log_filter, network};

/// How long one CNI plugin may take.
const CNI_TIMEOUT: Duration = Duration::from_secs(60);

/// Where devices are described by CDI, as every runtime has it.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Flags of `orlop cri`.
#[derive(clap::Args, Default)]
#[group(id = "cri")]
pub struct Arguments {
    /// The configuration file; drop-ins in FILE.d are laid over it [default: /etc/orlop/cri.toml, when it is there].
    #[arg(long = "cri-config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The socket of the CRI services [default: cri/cri.sock below the run folder].
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Folder of the CNI configuration lists; the first by name is used.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of the CNI plugins; may be repeated.
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Vec<PathBuf>,
    /// Folder of registry settings in containerd's hosts.toml layout; may be repeated [default: /etc/orlop/certs.d].
    #[arg(long, value_name = "DIR")]
    registry_config_dir: Vec<PathBuf>,
    /// Address of the streaming server of exec, attach and port-forward. The URL is the only secret: keep it on loopback
    /// [default: 127.0.0.1:0].
    #[arg(long, value_name = "IP:PORT")]
    streaming_address: Option<SocketAddr>,
    /// The shim program [default: orlop-shim beside this program].
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// The pause program [default: orlop-pause beside this program].
    #[arg(long, value_name = "FILE")]
    pause: Option<PathBuf>,
}

/// What else `orlop cri` can do.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
}

/// About the configuration.
#[derive(clap::Subcommand)]
pub enum ConfigCommand {
    /// Print the file with every key at its default and what it means: a start for your own.
    Default,
    /// Print what holds: defaults, file and drop-ins. Credentials are left out.
    Show {
        /// The configuration file.
        #[arg(long = "cri-config", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Read the file and its drop-ins and say what is wrong with them.
    Check {
        /// The configuration file.
        #[arg(long = "cri-config", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

impl Arguments {
    /// The network's configuration is somebody else's.
    pub fn has_own_network(&self) -> bool {
        self.cni_conf_dir.is_some()
    }
}

/// Prints or checks the configuration.
pub fn configure(layout: &Layout, command: Command) -> Result<()> {
    let Command::Config { what } = command;
    match what {
        ConfigCommand::Default => print!("{}", file::DEFAULT),
        ConfigCommand::Show { config } => {
            let arguments = Arguments { config, ..Arguments::default() };
            print!("{}", settings(layout, &arguments)?.shown()?);
        }
        ConfigCommand::Check { config } => {
            let arguments = Arguments { config, ..Arguments::default() };
            self::config(layout, &arguments)?;
            println!("{} is right", arguments.file(layout).0.display());
        }
    }
    Ok(())
}

/// Serves until cancelled; containers run on after it.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    if layout.root.is_some() && !arguments.has_own_network() {
        network::prepare(layout, instance)?;
    }
    let (config, reloads) = configuration(layout, arguments)?;
    Ok(serve(config, reloads, cancel).await?)
}

impl Arguments {
    /// The configuration file, and whether it was asked for.
    fn file(&self, layout: &Layout) -> (PathBuf, bool) {
        match &self.config {
            Some(file) => (file.clone(), true),
            None => (layout.configuration.join("cri.toml"), false),
        }
    }
}

/// What is configured: the server, and what the process logs.
struct Settings {
    cri: CriConfig,
    log_filter: String,
}

/// The server's configuration: flags, then files, then defaults.
pub fn config(layout: &Layout, arguments: &Arguments) -> Result<CriConfig> {
    Ok(settings(layout, arguments)?.cri)
}

fn settings(layout: &Layout, arguments: &Arguments) -> Result<Settings> {
    let (path, must_exist) = arguments.file(layout);
    let file = file::load(&path, must_exist)?;
    let log_filter = log_filter::choose(file.log.filter);
    log_filter::parse(&log_filter).with_context(|| format!("{} and its drop-ins: log.filter", path.display()))?;
    let state_dir = layout.state.join("cri");
    let program = |given: &Option<PathBuf>, name| given.clone().map_or_else(|| beside(name), Ok);
    let network = file.network;
    let cri = CriConfig {
        run_dir: layout.run.join("cri"),
        socket: arguments.socket.clone().or(file.socket).unwrap_or_else(|| layout.cri_socket()),
        shim_program: program(&arguments.shim, "orlop-shim")?,
        pause_program: program(&arguments.pause, "orlop-pause")?,
        cgroup_driver: file.cgroup_driver.unwrap_or_default(),
        network: NetworkConfig {
            conf_dir: arguments.cni_conf_dir.clone().or(network.conf_dir).unwrap_or_else(|| layout.cni_conf.clone()),
            bin_dirs: listed(&arguments.cni_bin_dir, network.bin_dirs, layout.cni_bin.clone()),
            cache_dir: layout.cni_cache.clone(),
            exec_timeout: network.plugin_timeout_seconds.map_or(CNI_TIMEOUT, Duration::from_secs),
        },
        streaming: arguments.streaming_address.or(file.streaming.address).unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
        cdi_dirs: file.devices.cdi_dirs.unwrap_or_else(|| CDI_DIRS.map(PathBuf::from).into()),
        runtimes: runtimes(&layout.run.join("cri"), file.runtimes)?,
        metrics: file.metrics.address,
        tracing: tracing(file.tracing)?,
        images: images(ImageConfig::new(&state_dir), layout, arguments, file.images, file.registries),
        state_dir,
    };
    Ok(Settings { cri, log_filter })
}

/// Stops a node whose agent is ours: that makes the cgroups of pods by itself.
pub fn refuse_systemd(config: &CriConfig) -> Result<()> {
    if config.cgroup_driver == Driver::Systemd {
        bail!(
            "cgroup_driver = \"systemd\" is for `orlop cri` below a kubelet; this node's own agent has cgroupfs alone"
        );
    }
    Ok(())
}

/// What flags say, then the file, then the default.
fn listed(flags: &[PathBuf], file: Option<Vec<PathBuf>>, default: PathBuf) -> Vec<PathBuf> {
    match flags {
        [] => file.unwrap_or_else(|| vec![default]),
        given => given.to_vec(),
    }
}

/// Where traces go, if anywhere.
fn tracing(file: TracingPart) -> Result<Option<TracingConfig>> {
    let rate = file.sampling_rate_per_million.unwrap_or_default();
    if rate > 1_000_000 {
        bail!("tracing.sampling_rate_per_million: {rate} is more than a million");
    }
    let Some(endpoint) = file.endpoint else { return Ok(None) };
    if !endpoint.starts_with("http://") {
        bail!(
            "tracing.endpoint: {endpoint:?} must begin with http://; spans are sent in the clear, so keep it on loopback"
        );
    }
    Ok(Some(TracingConfig { endpoint, samples_per_million: rate }))
}

/// The runtime programs, each with a folder for what it keeps.
fn runtimes(run_dir: &Path, file: BTreeMap<String, RuntimePart>) -> Result<BTreeMap<String, RuntimeProgram>> {
    let read = |(name, part): (String, RuntimePart)| {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if name.is_empty() || name == "orlop" || !name.chars().all(plain) {
            bail!("runtimes.{name}: a handler is named by lower-case letters, digits and -, and not orlop");
        }
        let root = part.root.unwrap_or_else(|| run_dir.join("runtimes").join(&name));
        for path in [&part.program, &root] {
            if !path.is_absolute() {
                bail!("runtimes.{name}: {} must be an absolute path", path.display());
            }
        }
        Ok((name, RuntimeProgram { program: part.program, root, systemd_cgroup: false }))
    };
    file.into_iter().map(read).collect()
}

fn images(
    mut config: ImageConfig,
    layout: &Layout,
    arguments: &Arguments,
    file: ImagesPart,
    registries: BTreeMap<String, HostConfig>,
) -> ImageConfig {
    let places = &layout.configuration;
    config.registries.hosts = registries;
    config.registries.hosts_dirs =
        listed(&arguments.registry_config_dir, file.registry_config_dirs, places.join("certs.d"));
    config.parallel_layers = file.parallel_layers.unwrap_or(config.parallel_layers);
    config.pinned = file.pinned.unwrap_or(config.pinned);
    config.short_names = file.short_names.unwrap_or(config.short_names);
    config.verifier_dir = Some(file.verifier_dir.unwrap_or_else(|| places.join("image-verifiers")));
    config.verifiers_max = file.verifiers_max.unwrap_or(config.verifiers_max);
    config.verifier_timeout_seconds = file.verifier_timeout_seconds.unwrap_or(config.verifier_timeout_seconds);
    config.registries.docker_config = file.docker_config;
    config.registries.mirrors_get_credentials = file.mirrors_get_credentials.unwrap_or_default();
    if let Some(seconds) = file.pull_progress_timeout_seconds {
        config.registries.progress_timeout_seconds = seconds;
    }
    config
}

impl Settings {
    /// For people: without secrets.
    fn shown(&self) -> Result<String> {
        let mut file = self.as_file();
        file.registries.values_mut().for_each(|host| host.credentials = None);
        toml::to_string(&file).context("write as TOML")
    }

    /// As their file would say them, with secrets.
    fn as_file(&self) -> CriFile {
        let (config, images) = (&self.cri, &self.cri.images);
        CriFile {
            version: Some(1),
            log: LogPart { filter: Some(self.log_filter.clone()) },
            socket: Some(config.socket.clone()),
            cgroup_driver: Some(config.cgroup_driver),
            network: NetworkPart {
                conf_dir: Some(config.network.conf_dir.clone()),
                bin_dirs: Some(config.network.bin_dirs.clone()),
                plugin_timeout_seconds: Some(config.network.exec_timeout.as_secs()),
            },
            streaming: StreamingPart { address: Some(config.streaming) },
            devices: DevicesPart { cdi_dirs: Some(config.cdi_dirs.clone()) },
            metrics: MetricsPart { address: config.metrics },
            tracing: TracingPart {
                endpoint: config.tracing.as_ref().map(|tracing| tracing.endpoint.clone()),
                sampling_rate_per_million: Some(
                    config.tracing.as_ref().map_or(0, |tracing| tracing.samples_per_million),
                ),
            },
            runtimes: config
                .runtimes
                .iter()
                .map(|(name, runtime)| {
                    let part = RuntimePart { program: runtime.program.clone(), root: Some(runtime.root.clone()) };
                    (name.clone(), part)
                })
                .collect(),
            images: ImagesPart {
                registry_config_dirs: Some(images.registries.hosts_dirs.clone()),
                parallel_layers: Some(images.parallel_layers),
                pull_progress_timeout_seconds: Some(images.registries.progress_timeout_seconds),
                pinned: Some(images.pinned.clone()),
                short_names: Some(images.short_names),
                verifier_dir: images.verifier_dir.clone(),
                verifiers_max: Some(images.verifiers_max),
                verifier_timeout_seconds: Some(images.verifier_timeout_seconds),
                docker_config: images.registries.docker_config.clone(),
                mirrors_get_credentials: Some(images.registries.mirrors_get_credentials),
            },
            registries: images.registries.hosts.clone(),
        }
    }
}

/// A program of ours that lies beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the path of this program")?;
    Ok(own.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_holds_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(folder.path())).unwrap();
        let documented = folder.path().join("documented.toml");
        let own = layout.configuration.display().to_string();
        std::fs::write(&documented, file::DEFAULT.replace("/etc/orlop", &own)).unwrap();
        let text = |config: Option<PathBuf>| {
            let arguments = Arguments { config, ..Arguments::default() };
            toml::to_string(&settings(&layout, &arguments).unwrap().as_file()).unwrap()
        };
        assert_eq!(text(Some(documented)), text(None));
    }

    #[test]
    fn runtimes_have_names_and_paths() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(folder.path())).unwrap();
        let path = folder.path().join("own.toml");
        let config = |text: &str| {
            std::fs::write(&path, text).unwrap();
            super::config(&layout, &Arguments { config: Some(path.clone()), ..Arguments::default() })
        };
        let runtime = &config("[runtimes.runc]\nprogram = '/usr/sbin/runc'\n").unwrap().runtimes["runc"];
        assert_eq!(runtime.program, Path::new("/usr/sbin/runc"));
        assert!(runtime.root.ends_with("cri/runtimes/runc"), "{:?}", runtime.root);
        for (text, words) in [
            ("[runtimes.runc]\nroot = '/r'\n", "program"),
            ("[runtimes.runc]\nprogram = 'runc'\n", "absolute"),
            ("[runtimes.Runc]\nprogram = '/runc'\n", "runtimes.Runc"),
            ("[runtimes.orlop]\nprogram = '/runc'\n", "not orlop"),
        ] {
            let said = format!("{:#}", config(text).expect_err(words));
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(folder.path())).unwrap();
        let path = folder.path().join("own.toml");
        let text = "[registries.'r.example']\ncredentials = { username = 'me', password = 'canary' }\n";
        std::fs::write(&path, text).unwrap();
        let arguments = Arguments { config: Some(path), ..Arguments::default() };
        let settings = settings(&layout, &arguments).unwrap();
        assert!(settings.cri.images.registries.hosts["r.example"].credentials.is_some());
        assert!(!settings.shown().unwrap().contains("canary"));
    }
}
