//! A container: its OCI specification.

use std::path::{Path, PathBuf};

use orlop_container::config::{Config, Linux, Mount, Process, Rlimit, Root, User};
use orlop_container::protocol::UserMappings;
use orlop_kernel::cgroup::{Cpu, HugepageLimit, Memory, Resources};
use orlop_kernel::seccomp::Profile;
use orlop_proto::cri;

use crate::devices::{self, HostDevice};
use crate::user::ResolvedUser;
use crate::{SpecError, check_path, sandbox, security, selinux, user_namespace, wrong};

/// Where programs are looked for when the image doesn't say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of a container: soft and hard, whatever the daemon's own are.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// How an image says that it is run.
#[derive(Clone, Debug, Default)]
pub struct ImageDefaults {
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entry point.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working folder.
    pub working_dir: String,
}

/// An image that a container mounts.
#[derive(Clone, Debug)]
pub struct ImageVolume {
    /// As the mount names it.
    pub image: String,
    /// Folders to stack, topmost first.
    pub layers: Vec<PathBuf>,
}

/// Everything that a container's specification is made of.
#[derive(Clone, Debug)]
pub struct ContainerInputs<'a> {
    /// The container's id.
    pub id: &'a str,
    /// What was asked for.
    pub config: &'a cri::ContainerConfig,
    /// The pod.
    pub sandbox: &'a cri::PodSandboxConfig,
    /// The sandbox's folder.
    pub sandbox_folder: &'a Path,
    /// Folder of the pod's own `hostname`, `hosts` and `resolv.conf`.
    pub files: &'a Path,
    /// What the image says.
    pub image: &'a ImageDefaults,
    /// Who it runs as.
    pub user: &'a ResolvedUser,
    /// The profile that a Localhost seccomp profile names.
    pub localhost_profile: Option<&'a Profile>,
    /// Name of the AppArmor profile of those who name none, or why there is none on this machine.
    pub default_apparmor: Result<&'a str, &'a str>,
    /// Name of the pod, or of the machine for a pod on its network.
    pub hostname: &'a str,
    /// Images that it mounts.
    pub volumes: &'a [ImageVolume],
    /// Devices of the machine that it gets.
    pub devices: &'a [HostDevice],
    /// Variables that its devices need, `NAME=value`.
    pub more_env: &'a [String],
    /// Mounts that its devices need.
    pub more_mounts: &'a [Mount],
    /// The container's cgroup.
    pub cgroup: String,
}

/// The specification of a container.
///
/// # Errors
/// Names the field that can't be had.
pub fn container_config(inputs: &ContainerInputs<'_>) -> Result<Config, SpecError> {
    let config = inputs.config;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let asked = linux.resources.clone().unwrap_or_default();
    let mappings = user_mappings(inputs, &context)?;
    selinux::check("config.linux.security_context", context.selinux_options.as_ref())?;
    let bounding = security::capabilities(&context)?;
    let process = Process {
        terminal: config.tty,
        user: User {
            uid: inputs.user.uid,
            gid: inputs.user.gid,
            additional_gids: inputs.user.groups.clone(),
            ..User::default()
        },
        args: arguments(config, inputs.image)?,
        env: environment(inputs)?,
        cwd: [config.working_dir.as_str(), inputs.image.working_dir.as_str(), "/"]
            .into_iter()
            .find(|cwd| !cwd.is_empty())
            .unwrap_or("/")
            .into(),
        capabilities: security::sets(bounding, &context)?,
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: OPEN_FILES.0, hard: OPEN_FILES.1 }],
        no_new_privileges: context.no_new_privs && !context.privileged,
        oom_score_adj: Some(asked.oom_score_adj as i32),
        apparmor_profile: security::apparmor_profile(&context, inputs.default_apparmor)?,
        ..Process::default()
    };
    let (masked, protected) = match context.privileged {
        true => (vec![], vec![]),
        false => (context.masked_paths.clone(), context.readonly_paths.clone()),
    };
    Ok(Config {
        oci_version: "1.2.0".into(),
        process,
        root: Root { path: "rootfs".into(), readonly: context.readonly_rootfs },
        hostname: inputs.sandbox.hostname.clone(),
        mounts: mounts(inputs, &context, &mappings)?,
        linux: Linux {
            resources: Resources { devices: devices::rules(context.privileged, inputs.devices), ..resources(&asked) },
            cgroups_path: inputs.cgroup.clone(),
            namespaces: vec![],
            devices: devices::nodes(inputs.devices),
            seccomp: security::seccomp_profile(&context, bounding, inputs.localhost_profile)?,
            masked_paths: masked.into_iter().map(PathBuf::from).collect(),
            readonly_paths: protected.into_iter().map(PathBuf::from).collect(),
            uid_mappings: mappings.uid_mappings,
            gid_mappings: mappings.gid_mappings,
            ..Linux::default()
        },
        ..Config::default()
    })
}

/// The command: the pod's command replaces the image's entry point and its arguments, the pod's arguments replace the
/// image's.
fn arguments(config: &cri::ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, SpecError> {
    let (command, args) = (&config.command, &config.args);
    let mut all = if command.is_empty() { image.entrypoint.clone() } else { command.clone() };
    let defaults = command.is_empty() && args.is_empty();
    all.extend(if defaults { image.cmd.clone() } else { args.clone() });
    if all.is_empty() {
        return Err(wrong("config.command", "no command specified: neither the pod nor the image names one"));
    }
    Ok(all)
}

/// Path and host name first, then the image's variables, then the pod's; `HOME` where neither names one.
fn environment(inputs: &ContainerInputs<'_>) -> Result<Vec<String>, SpecError> {
    let config = inputs.config;
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value.into(),
        None => env.push((name.into(), value.into())),
    };
    if !inputs.hostname.is_empty() {
        set("HOSTNAME", inputs.hostname);
    }
    for entry in std::iter::once(DEFAULT_PATH).chain(inputs.image.env.iter().map(String::as_str)) {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(name, value);
    }
    if config.tty {
        set("TERM", "xterm");
    }
    for entry in &config.envs {
        let value = std::str::from_utf8(&entry.value)
            .map_err(|_| wrong(format!("config.envs[{}]", entry.key), "is not UTF-8"))?;
        set(&entry.key, value);
    }
    for entry in inputs.more_env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value.into(),
            None => env.push((name.into(), value.into())),
        }
    }
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".into(), inputs.user.home.clone()));
    }
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// Limits in OCI's words; zero means that nothing was asked for.
#[must_use]
pub fn resources(asked: &cri::LinuxContainerResources) -> Resources {
    let some = |value: i64| (value != 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Resources {
        cpu: Some(Cpu {
            shares: some(asked.cpu_shares).map(|shares| shares.max(2) as u64),
            quota: some(asked.cpu_quota),
            period: some(asked.cpu_period).map(|period| period.max(0) as u64),
            cpus: text(&asked.cpuset_cpus),
            mems: text(&asked.cpuset_mems),
            ..Cpu::default()
        }),
        memory: Some(Memory {
            limit: some(asked.memory_limit_in_bytes),
            swap: some(asked.memory_swap_limit_in_bytes),
            ..Memory::default()
        }),
        pids: None,
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .filter(|limit| limit.limit > 0)
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        devices: vec![],
        unified: asked.unified.clone().into_iter().collect(),
        ..Resources::default()
    }
}

/// The pod's user namespace, which is its containers' too.
fn user_mappings(
    inputs: &ContainerInputs<'_>,
    context: &cri::LinuxContainerSecurityContext,
) -> Result<UserMappings, SpecError> {
    let of = |field: &str, options: &cri::NamespaceOption| user_namespace::mappings(field, options);
    let pod = of("sandbox_config.linux.security_context.namespace_options", &sandbox::namespaces(inputs.sandbox))?;
    let field = "config.linux.security_context.namespace_options";
    let own = context.namespace_options.as_ref().map(|options| of(field, options)).transpose()?.flatten();
    // A container that says nothing of it has its pod's.
    let said = context.namespace_options.as_ref().is_some_and(|options| options.userns_options.is_some());
    if said && own != pod {
        return Err(wrong(format!("{field}.userns_options"), "must be the pod's own"));
    }
    Ok(pod.unwrap_or_default())
}

fn mounts(
    inputs: &ContainerInputs<'_>,
    context: &cri::LinuxContainerSecurityContext,
    mappings: &UserMappings,
) -> Result<Vec<Mount>, SpecError> {
    let mount = |destination: &str, kind: &str, source: PathBuf, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source,
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    let read_only = if context.privileged { "rw" } else { "ro" };
    let fresh = |destination: &str, kind: &str, options: &[&str]| mount(destination, kind, kind.into(), options);
    let mut all = vec![
        fresh("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        fresh("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        fresh("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        fresh("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        fresh("/sys", "sysfs", &["nosuid", "noexec", "nodev", read_only]),
        fresh("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", read_only]),
    ];
    let asked = |path: &str| inputs.config.mounts.iter().any(|mount| mount.container_path == path);
    let ipc_node = sandbox::namespaces(inputs.sandbox).ipc == cri::NamespaceMode::Node as i32;
    if !asked("/dev/shm") {
        let source = if ipc_node { "/dev/shm".into() } else { inputs.sandbox_folder.join("shm") };
        all.push(mount("/dev/shm", "bind", source, &["bind", "rw"]));
    }
    for name in ["hostname", "hosts", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        if !asked(&destination) {
            let options: &[&str] = if context.readonly_rootfs { &["bind", "ro"] } else { &["bind", "rw"] };
            // The pod's own files are its root's.
            all.push(Mount {
                uid_mappings: mappings.uid_mappings.clone(),
                gid_mappings: mappings.gid_mappings.clone(),
                ..mount(&destination, "bind", inputs.files.join(name), options)
            });
        }
    }
    for entry in &inputs.config.mounts {
        all.push(match &entry.image {
            Some(_) => image_volume(entry, inputs.volumes)?,
            None => bind(entry)?,
        });
    }
    all.extend(inputs.more_mounts.iter().cloned());
    Ok(all)
}

/// A read-only view of an image, or of a path in it.
fn image_volume(entry: &cri::Mount, volumes: &[ImageVolume]) -> Result<Mount, SpecError> {
    let field = format!("config.mounts[{}]", entry.container_path);
    check_path(&format!("{field}.container_path"), &entry.container_path)?;
    if !entry.host_path.is_empty() {
        return Err(wrong(format!("{field}.host_path"), "must be empty beside an image"));
    }
    if !entry.readonly {
        return Err(wrong(format!("{field}.readonly"), "must be set: an image volume can't be written"));
    }
    let image = entry.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let volume = volumes.iter().find(|volume| volume.image == image);
    let volume = volume.ok_or_else(|| wrong(format!("{field}.image"), format!("{image:?} is not on this node")))?;
    let mut options = vec!["ro".to_string(), "nodev".into(), "nosuid".into()];
    let layers: Vec<String> = volume.layers.iter().map(|layer| layer.display().to_string()).collect();
    options.push(format!("lowerdir={}", layers.join(":")));
    if !entry.image_sub_path.is_empty() {
        options.push(format!("subpath={}", entry.image_sub_path));
    }
    Ok(Mount {
        destination: entry.container_path.clone().into(),
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
        ..Mount::default()
    })
}

fn bind(entry: &cri::Mount) -> Result<Mount, SpecError> {
    let field = format!("config.mounts[{}]", entry.container_path);
    check_path(&format!("{field}.container_path"), &entry.container_path)?;
    if !entry.host_path.starts_with('/') {
        return Err(wrong(format!("{field}.host_path"), format!("{:?} must be absolute", entry.host_path)));
    }
    let propagation = match cri::MountPropagation::try_from(entry.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => "rprivate",
        Ok(cri::MountPropagation::PropagationHostToContainer) => "rslave",
        Ok(cri::MountPropagation::PropagationBidirectional) => "rshared",
        Err(_) => return Err(wrong(format!("{field}.propagation"), "unknown")),
    };
    if entry.recursive_read_only && (!entry.readonly || propagation != "rprivate") {
        return Err(wrong(format!("{field}.recursive_read_only"), "wants readonly and private propagation"));
    }
    let writing = match (entry.recursive_read_only, entry.readonly) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    Ok(Mount {
        destination: entry.container_path.clone().into(),
        kind: "bind".into(),
        source: entry.host_path.clone().into(),
        options: ["rbind", propagation, writing].map(String::from).into(),
        uid_mappings: user_namespace::ids(&entry.uid_mappings),
        gid_mappings: user_namespace::ids(&entry.gid_mappings),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_pod_and_image() {
        let image = ImageDefaults { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..ImageDefaults::default() };
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (command, args, expected) in [
            (vec![], vec![], vec!["e", "c"]),
            (vec!["x"], vec![], vec!["x"]),
            (vec![], vec!["a"], vec!["e", "a"]),
            (vec!["x"], vec!["a"], vec!["x", "a"]),
        ] {
            let config = cri::ContainerConfig { command: words(&command), args: words(&args), ..Default::default() };
            assert_eq!(arguments(&config, &image).unwrap(), words(&expected));
        }
        assert!(arguments(&cri::ContainerConfig::default(), &ImageDefaults::default()).is_err());
    }

    #[test]
    fn paths_with_parents_are_refused() {
        let entry = cri::Mount { container_path: "/a/../b".into(), host_path: "/x".into(), ..Default::default() };
        assert!(bind(&entry).unwrap_err().to_string().contains("container_path"));
    }
}
