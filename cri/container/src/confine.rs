//! The last steps of every process of a container: limits, identity, capabilities, seccomp, exec.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use orlop_kernel::capability::{self, Capabilities};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::seccomp::Filter;
use orlop_kernel::{lsm, process, terminal};
use rustix::fs::Mode;
use rustix::process::Resource;

use crate::config::{Personality, Process, Rlimit};
use crate::stage::{StageError, Step};
use crate::user_namespace::UserNamespace;

/// Where programs are looked for when the environment doesn't say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What confines the processes of a container; worked out once, for its first one and for every exec.
#[derive(Debug)]
pub struct Confinement {
    filter: Option<Filter>,
    bounding: Capabilities,
    effective: Capabilities,
    inheritable: Capabilities,
    ambient: Capabilities,
}

impl Confinement {
    /// Reads capabilities and compiles the filter.
    ///
    /// # Errors
    /// When a name is not known or the filter gets too long.
    pub fn prepare(
        process: &Process,
        seccomp: Option<&orlop_kernel::seccomp::Profile>,
    ) -> Result<Confinement, StageError> {
        let set = |names: &[String]| {
            Capabilities::from_names(names.iter().map(String::as_str))
                .map_err(|name| format!("{name:?} is no capability"))
                .step("read the capabilities")
        };
        Ok(Confinement {
            filter: seccomp.map(Filter::compile).transpose().step("compile the seccomp profile")?,
            bounding: set(&process.capabilities.bounding)?,
            effective: set(&process.capabilities.effective)?,
            inheritable: set(&process.capabilities.inheritable)?,
            ambient: set(&process.capabilities.ambient)?,
        })
    }

    /// Gives this process its limits, identity and working folder and takes everything else away. Order matters: the
    /// bounding set needs SETPCAP, a filter without no_new_privs needs SYS_ADMIN, so both come before the identity
    /// changes; with no_new_privs the filter comes last, just before the exec, when it has the least left to allow.
    /// Limits and streams are the machine's, so they come before the user namespace is entered by `enter`.
    pub(crate) fn apply(
        &self,
        process: &Process,
        namespace: Option<&UserNamespace>,
        enter: impl FnOnce(&UserNamespace) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        for limit in &process.rlimits {
            set_limit(limit)?;
        }
        let user = &process.user;
        match namespace {
            None => own_streams(user.uid)?,
            Some(namespace) => {
                own_streams(namespace.mappings.host_uid(user.uid)?)?;
                for gid in [user.gid].iter().chain(&user.additional_gids) {
                    namespace.mappings.host_gid(*gid)?;
                }
                enter(namespace)?;
            }
        }
        // A folder that only root may enter, and one that only the user may (a share that doesn't trust root): both do.
        let early = enter_folder(&process.cwd);
        capability::bound(self.bounding).step("bound the capabilities")?;
        if let Some(filter) = self.filter.as_ref().filter(|_| !process.no_new_privileges) {
            filter.load().step("load the seccomp filter")?;
        }
        rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
        process::set_identity(user.uid, user.gid, &user.additional_gids)
            .step(format!("become user {}, group {}", user.uid, user.gid))?;
        let effective = if user.uid == 0 { self.effective } else { self.ambient };
        capability::apply_inheritable(effective, self.inheritable, self.ambient).step("set the capabilities")?;
        if process.no_new_privileges {
            rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
        }
        early.or_else(|_| enter_folder(&process.cwd))
    }

    /// Replaces this process by the container's program; returns only when that fails, with Go's well-known words,
    /// for which users and dashboards look.
    pub(crate) fn exec(&self, process: &Process) -> StageError {
        self.exec_with(process, &[])
    }

    /// The same with descriptors that the program gets.
    pub(crate) fn exec_with(&self, process: &Process, kept: &[OwnedFd]) -> StageError {
        let failed =
            |message: String| StageError { step: "unable to start container process".into(), source: message.into() };
        let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
            return failed("no command specified".into());
        };
        let program = match find(name, &process.env) {
            Ok(program) => program,
            Err(message) => return failed(message),
        };
        let texts =
            |list: &[String]| list.iter().map(|text| CString::new(text.as_bytes())).collect::<Result<Vec<_>, _>>();
        let (Ok(arguments), Ok(environment)) = (texts(&process.args), texts(&process.env)) else {
            return failed(format!("exec {name:?}: an argument or variable holds a NUL byte"));
        };
        // Nothing else that the runtime has open reaches the container.
        let keep = |fd: &OwnedFd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(Into::into);
        if let Err(error) = process::close_on_exec_from(3).and_then(|()| kept.iter().try_for_each(keep)) {
            return failed(format!("close the runtime's files: {error}"));
        }
        if let Some(filter) = self.filter.as_ref().filter(|_| process.no_new_privileges)
            && let Err(error) = filter.load()
        {
            return failed(format!("load the seccomp filter: {error}"));
        }
        let error = process::exec(&program, &arguments, &environment);
        failed(format!("exec {}: {}", program.display(), plain(&error)))
    }
}

/// Whether the program of a process is there, in the words of [`Confinement::exec`].
pub(crate) fn check_program(process: &Process) -> Result<(), StageError> {
    let name = process.args.first().map_or("", String::as_str);
    find(name, &process.env).map(drop).step("unable to start container process")
}

/// Makes the streams the user's own, so that `/dev/stdout` can be opened by it too. The null device belongs to all.
fn own_streams(uid: u32) -> Result<(), StageError> {
    use rustix::io::Errno;
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let stat = rustix::fs::fstat(stream).step("look at the streams")?;
        let null = stat.st_rdev == rustix::fs::makedev(1, 3);
        if null || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
            // Sockets and files of others' file systems need not take an owner.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(errno).step("own the streams"),
        }
    }
    Ok(())
}

/// The limit of this name.
pub(crate) fn resource(kind: &str) -> Option<Resource> {
    Some(match kind.trim_start_matches("RLIMIT_") {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}

fn set_limit(limit: &Rlimit) -> Result<(), StageError> {
    let resource = resource(&limit.kind).ok_or("it is no limit").step(format!("set the limit {}", limit.kind))?;
    // Without SYS_RESOURCE the hard limit can't grow: as much as the machine allows is better than no container.
    let hard = rustix::process::getrlimit(resource).maximum;
    let free = capability::permitted().is_ok_and(|ours| ours.has("SYS_RESOURCE"));
    let cut = |value: u64| if free { value } else { hard.map_or(value, |hard| value.min(hard)) };
    let number = |value: u64| (value != u64::MAX).then_some(value);
    let wanted = rustix::process::Rlimit { current: number(cut(limit.soft)), maximum: number(cut(limit.hard)) };
    rustix::process::setrlimit(resource, wanted).step(format!("set the limit {}", limit.kind))
}

/// Sets `oom_score_adj` as far as the machine allows: lowering it needs SYS_RESOURCE, and a container that starts
/// with a higher score is better than none.
pub(crate) fn set_oom_score(procfs: &Procfs, score: Option<i32>) {
    if let Some(score) = score {
        let _ = procfs.write("self/oom_score_adj", &score.to_string());
    }
}

/// Puts the program that this process becomes under its AppArmor profile and its SELinux label. Both wait for the exec, so
/// this is done while the machine's `/proc` is there.
pub(crate) fn set_labels(procfs: &Procfs, process: &Process) -> Result<(), StageError> {
    if let Some(profile) = &process.apparmor_profile {
        lsm::set_apparmor(procfs, profile).step("set the AppArmor profile")?;
    }
    if let Some(label) = &process.selinux_label {
        lsm::set_selinux(procfs, label).step("set the SELinux label")?;
        // The keyring that this process has was made without the label.
        process::join_new_keyring();
    }
    Ok(())
}

/// Sets the execution domain that is asked for.
pub(crate) fn set_personality(personality: Option<&Personality>) -> Result<(), StageError> {
    /// `PER_LINUX32`.
    const LINUX32: u32 = 8;
    let Some(Personality { domain, .. }) = personality else { return Ok(()) };
    process::set_execution_domain(if domain == "LINUX32" { LINUX32 } else { 0 }).step("set linux.personality")
}

/// Enters the working folder and makes sure that it lies inside the root.
fn enter_folder(cwd: &str) -> Result<(), StageError> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let what = || format!("enter the working folder {cwd:?}");
    if !cwd.starts_with('/') {
        return Err("it is not an absolute path").step(what());
    }
    std::env::set_current_dir(cwd).step(what())?;
    // A folder reached through a leaked descriptor has no path from this root; the kernel then says "(unreachable)".
    let there = rustix::process::getcwd(Vec::new()).step(what())?;
    if there.to_bytes().starts_with(b"/") { Ok(()) } else { Err("it lies outside of the container").step(what()) }
}

/// Makes a terminal this process's own and all its streams.
pub(crate) fn use_terminal(slave: &OwnedFd) -> Result<(), StageError> {
    rustix::process::setsid().step("start a session")?;
    terminal::take_control(slave).step("take the terminal")?;
    for place in 0..3 {
        process::set_stdio(slave, place).step("use the terminal")?;
    }
    Ok(())
}

/// Looks a program up as execvp does.
fn find(name: &str, environment: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match std::fs::metadata(name) {
            Err(error) => Err(format!("exec: {name:?}: stat {name}: {}", plain(&error))),
            Ok(meta) if meta.is_dir() => Err(format!("exec: {name:?}: is a directory")),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err(format!("exec: {name:?}: permission denied")),
            Ok(_) => Ok(PathBuf::from(name)),
        };
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let executable = |program: &Path| {
        std::fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name))
        .find(|program| executable(program))
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

/// The kernel's words without the number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
