//! The bundle that a runtime program makes a container of: its root, the sources of its mounts, and its `config.json`.
//!
//! All of them are attached in a mount namespace of the driver's own, which takes in what the machine unmounts and gives
//! nothing back. Sources are copied while the machine's mounts are still shared, so that a bind that shares goes on to.
//!
//! They lie where every user may look them up, on a bench that covers a folder of the machine for nobody but the program:
//! in a pod with a user namespace it builds the container as the root of that one, to whom the sandbox's folder is closed.
//! What such a pod needs of the kernel is done before the program runs: files are mapped to the pod's ids here, and
//! mounts that are read-only with all below are made so, which not every program can.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::cgroup::unit::Scope;
use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{capability, path, process};
use rustix::fs::Mode;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde_json::{Value, json};

use super::ProgramPod;
use crate::config::{Config, Mount, Namespace, Process};
use crate::confine;
use crate::create::unshare;
use crate::hook;
use crate::protocol::{ContainerSpec, NamespaceSource, PidSource};
use crate::rootfs::{self, Source, Tree};
use crate::stage::{StageError, Step};

/// The oldest version of the specification that has all that is used: every program takes it.
const OCI_VERSION: &str = "1.0.2";
/// A folder that everybody may pass.
const OPEN: Mode = Mode::from_raw_mode(0o711);

/// The folder that the bench covers: every machine has it, and no program has its files there.
const BENCH: &str = "/dev/shm";
/// The container's root on the bench.
const ROOT: &str = "root";

/// A container's bundle.
pub(super) struct Bundle<'a> {
    pub(super) folder: PathBuf,
    pub(super) spec: &'a ContainerSpec,
    pub(super) config: &'a Config,
    pub(super) place: ProgramPod<'a>,
}

impl Bundle<'_> {
    /// Builds it. This process has a mount namespace of its own afterwards.
    pub(super) fn build(&self, target: Option<i32>) -> Result<(), StageError> {
        std::fs::create_dir_all(&self.folder).step(format!("make {:?}", self.folder))?;
        let sources = rootfs::open_trees(self.spec, self.config, &self.place.pod)?;
        let shm = self.copy_shm()?;
        let user = self.place.pod.pause.user.as_ref().map(|user| &user.mappings);
        if let Some(user) = user {
            // Mapped layers take no files of anybody whom the pod doesn't have.
            process::make_files_as(user.host_uid(0)?, user.host_gid(0)?).step("make files for the pod's root")?;
        }
        let entries = self.mount(sources, shm)?;
        if user.is_some() {
            process::make_files_as(0, 0).step("make files for the machine's root")?;
        }
        let document = self.document(entries, target);
        let file = self.folder.join("config.json");
        let text = serde_json::to_vec(&document).step("encode the bundle's config.json")?;
        std::fs::write(&file, text).step(format!("write {file:?}"))
    }

    /// Mounts the root and the sources on the bench; returns the mounts as the program is to make them.
    fn mount(&self, (tree, sources): (Tree, Vec<Source>), shm: OwnedFd) -> Result<Vec<Mount>, StageError> {
        let (bench, place) = cover()?;
        let tree = tree.mount(&place, self.config.linux.mount_label.as_deref())?;
        let sources = rootfs::pick_views(&self.config.mounts, sources, &place)?;
        mount::attach(&tree, &place).step("attach the overlay")?;
        let mut shm = Some(shm);
        let mut entries = Vec::new();
        for (at, (entry, source)) in self.config.mounts.iter().zip(sources).enumerate() {
            let (copy, folder) = match source {
                Source::Bind { mount, folder } => (mount, folder),
                Source::Shm => (shm.take().ok_or("it is mounted once already").step("mount shared memory")?, true),
                Source::New | Source::View { .. } => {
                    entries.push(entry.clone());
                    continue;
                }
            };
            attach_source(&bench, at, entry, &copy, folder)
                .step(format!("open the source of {:?}", entry.destination))?;
            entries.push(bind(entry, Path::new(BENCH).join(at.to_string())));
        }
        Ok(entries)
    }

    /// A copy of the pod's shared memory, which can only be made where it is mounted.
    fn copy_shm(&self) -> Result<OwnedFd, StageError> {
        let pause = self.place.pod.pause;
        let machine = namespace::open(Path::new("/proc/self/ns/mnt")).step("open the machine's mount namespace")?;
        namespace::join_process(&pause.pidfd, Kinds::MOUNT).step("join the pod's mount namespace")?;
        let shm = mount::clone_fd(&pause.shm, false).step("open the pod's shared memory");
        namespace::join(&machine, LinkNameSpaceType::Mount).step("leave the pod's mount namespace")?;
        shm
    }

    /// The specification that the program reads.
    fn document(&self, mounts: Vec<Mount>, target: Option<i32>) -> Value {
        let mut config = self.config.clone();
        config.oci_version = OCI_VERSION.into();
        // The pod's namespace has it already.
        config.hostname = String::new();
        config.root.path = Path::new(BENCH).join(ROOT);
        config.linux.rootfs_propagation = propagation(&mounts).or(config.linux.rootfs_propagation);
        config.linux.namespaces = self.namespaces(target);
        if let Some(scope) = Scope::at(&config.linux.cgroups_path) {
            // The program asks systemd for it by itself. crun would put the container and its limits into a cgroup below.
            config.linux.cgroups_path = scope.for_program();
            config.annotations.insert("run.oci.systemd.subgroup".into(), String::new());
        }
        config.mounts = mounts;
        config.hooks.iter_mut().for_each(hook::bound);
        let process = process(&config.process);
        let mut document = json!(config);
        document["process"] = process;
        document
    }

    fn namespaces(&self, target: Option<i32>) -> Vec<Namespace> {
        let sandbox = self.place.sandbox;
        let of = |pid: i32, name: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{name}")));
        let namespace = |kind: &str, path| Namespace { kind: kind.into(), path };
        let pause = self.place.pod.pause.pid;
        let mut all = vec![namespace("mount", None)];
        if sandbox.user.is_some() {
            all.push(namespace("user", of(pause, "user")));
        }
        for (kind, name, source) in
            [("network", "net", &sandbox.network), ("ipc", "ipc", &sandbox.ipc), ("uts", "uts", &sandbox.uts)]
        {
            if *source != NamespaceSource::Host {
                all.push(namespace(kind, of(pause, name)));
            }
        }
        match (&self.spec.pid, target) {
            (PidSource::Host, _) => {}
            (PidSource::Container, _) => all.push(namespace("pid", None)),
            (PidSource::Pod, _) => all.push(namespace("pid", of(pause, "pid"))),
            (PidSource::Target(_), target) => all.extend(target.map(|pid| namespace("pid", of(pid, "pid")))),
        }
        if let Cgroups::V2(_) = self.place.pod.cgroups {
            all.push(namespace("cgroup", None));
        }
        all
    }
}

/// Gives this process a mount namespace of its own, with a small file system on which the root and copies of mounts get a
/// name; returns it and the root's place, which programs look for whenever they make a process.
pub(super) fn cover() -> Result<(OwnedFd, OwnedFd), StageError> {
    unshare(UnshareFlags::NEWNS).step("make a mount namespace")?;
    mount::set_propagation(c"/", Propagation::Slave).step("keep mounts from the machine")?;
    let what = || format!("cover {BENCH} for the program");
    let options = [FsOption::Value("mode", "711"), FsOption::Value("size", "1m")];
    let bench = mount::new_filesystem("tmpfs", "mounts", &options, Attributes::empty()).step(what())?;
    mount::attach(&bench, path::open_root(Path::new(BENCH)).step(what())?).step(what())?;
    let place = path::make_folder_in_root(&bench, Path::new(ROOT), OPEN).step("make the root's place")?;
    Ok((bench, place))
}

fn attach_source(bench: &OwnedFd, at: usize, entry: &Mount, copy: &OwnedFd, folder: bool) -> Result<(), StageError> {
    let (name, what) = (at.to_string(), "attach it");
    let place = if folder {
        path::make_folder_in_root(bench, Path::new(&name), OPEN).step(what)?
    } else {
        path::make_file_in_root(bench, Path::new(&name), Mode::from_raw_mode(0o600)).step(what)?
    };
    if entry.options.iter().any(|option| option == "rro") {
        let read_only = Attributes::MOUNT_ATTR_RDONLY;
        mount::set_attributes(copy, read_only, Some(Propagation::Private), true).step("make it read-only")?;
    }
    mount::attach(copy, &place).step(what)
}

/// The mount of a source, under the name that it has for the program.
fn bind(entry: &Mount, source: PathBuf) -> Mount {
    let mut options = entry.options.clone();
    options.retain(|option| !option.starts_with("lowerdir=") && !option.starts_with("subpath="));
    options.retain(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
    for option in options.iter_mut().filter(|option| *option == "rro") {
        *option = "ro".into();
    }
    let has = |names: &[&str]| options.iter().any(|option| names.contains(&option.as_str()));
    let mut more = Vec::new();
    if !has(&["bind", "rbind"]) {
        more.push("bind");
    }
    if !has(&["private", "rprivate", "slave", "rslave", "shared", "rshared"]) {
        more.push("rprivate");
    }
    if !entry.is_bind() && !has(&["ro"]) {
        // A view of an image is never writable.
        more.push("ro");
    }
    options.extend(more.into_iter().map(String::from));
    Mount { destination: entry.destination.clone(), kind: "bind".into(), source, options, ..Mount::default() }
}

/// How the root must share for its mounts to share as they ask.
fn propagation(mounts: &[Mount]) -> Option<String> {
    let has = |wanted: &str| mounts.iter().flat_map(|entry| &entry.options).any(|option| option == wanted);
    ["rshared", "rslave"].into_iter().find(|wanted| has(wanted)).map(String::from)
}

/// A process as the specification has it.
pub(super) fn process(process: &Process) -> Value {
    let mut process = process.clone();
    fit(&mut process);
    let ambient = process.capabilities.ambient.clone();
    let mut document = json!(process);
    // The kernel takes no ambient capability that is not inheritable.
    document["capabilities"]["inheritable"] = json!(ambient);
    document
}

/// Takes back what this machine does not allow, as the built-in runtime does: programs would refuse it.
fn fit(process: &mut Process) {
    let Ok(ours) = capability::permitted() else { return };
    let sets = &mut process.capabilities;
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted, &mut sets.ambient] {
        set.retain(|name| ours.has(name.trim_start_matches("CAP_")));
    }
    if ours.has("SYS_RESOURCE") {
        return;
    }
    let score = Procfs::open().and_then(|procfs| procfs.read("self/oom_score_adj")).ok();
    if let (Some(wanted), Some(score)) = (process.oom_score_adj, score.and_then(|text| text.trim().parse().ok())) {
        process.oom_score_adj = Some(wanted.max(score));
    }
    for limit in &mut process.rlimits {
        let hard = confine::resource(&limit.kind).and_then(|kind| rustix::process::getrlimit(kind).maximum);
        if let Some(hard) = hard {
            (limit.hard, limit.soft) = (limit.hard.min(hard), limit.soft.min(hard));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IdMapping;

    #[test]
    fn binds_have_names_of_their_own_and_share_as_asked() {
        let entry = |kind: &str, options: &[&str]| Mount {
            destination: "/d".into(),
            kind: kind.into(),
            source: "/s".into(),
            uid_mappings: vec![IdMapping::default()],
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        };
        for (kind, before, after) in [
            ("bind", &["bind", "rw"][..], &["bind", "rw", "rprivate"][..]),
            ("bind", &["rbind", "rprivate", "rro", "ridmap"], &["rbind", "rprivate", "ro"]),
            ("overlay", &["lowerdir=/a:/b", "subpath=x", "nosuid"], &["nosuid", "bind", "rprivate", "ro"]),
        ] {
            let bind = bind(&entry(kind, before), "/n/0".into());
            assert_eq!((bind.kind.as_str(), bind.source.to_str()), ("bind", Some("/n/0")));
            assert_eq!(bind.options, after);
            assert!(bind.uid_mappings.is_empty(), "they are mapped already");
        }
        let list = |options: &[&str]| options.iter().map(|option| entry("bind", &[option])).collect::<Vec<_>>();
        assert_eq!(propagation(&list(&["rslave", "rshared"])).as_deref(), Some("rshared"));
        assert_eq!(propagation(&list(&["rprivate", "rslave"])).as_deref(), Some("rslave"));
        assert_eq!(propagation(&list(&["rprivate"])), None);
    }

    #[test]
    fn ambient_capabilities_are_inheritable() {
        let names = capability::permitted().unwrap().names();
        let ambient = names.first().cloned().into_iter().collect::<Vec<_>>();
        let mut one = Process { args: vec!["x".into()], ..Process::default() };
        one.capabilities.ambient = ambient.clone();
        one.capabilities.bounding = ambient.iter().cloned().chain(["CAP_NO_SUCH".into()]).collect();
        let document = process(&one);
        assert_eq!(document["capabilities"]["inheritable"], json!(ambient));
        assert_eq!(document["capabilities"]["bounding"], json!(ambient));
    }
}
