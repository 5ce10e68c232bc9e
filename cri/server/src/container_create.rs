//! `CreateContainer`: image, user, specification, writable layer, then the shim makes it up to its exec.
//!
//! The record comes last: what has none is removed by the next start of the server.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_container::config::Linux;
use orlop_container::protocol::{ContainerSpec, PidSource, Reply, Request};
use orlop_cri_spec::user::ResolvedUser;
use orlop_cri_spec::{ContainerInputs, ImageDefaults, ImageVolume, check_name, container_config};
use orlop_image::ImageRecord;
use orlop_kernel::seccomp::Profile;
use orlop_proto::cri;

use crate::container::{self, Container};
use crate::error::{RpcError, argument, chain, file};
use crate::image_volumes::{self, HeldVolume};
use crate::record::{ContainerRecord, Encoded, HookTimes, UserRecord, version};
use crate::sandbox::Sandbox;
use crate::server::{Server, blocking, new_id, now};
use crate::shim::{self, unexpected};
use crate::{container_cdi, container_devices, container_user, handlers, scope, signals, traces};

/// Bytes of a seccomp profile.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// Makes a container, or leaves nothing of it.
pub(crate) async fn create(
    server: Arc<Server>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, RpcError> {
    let config = request.config.ok_or_else(|| argument("config", "is missing"))?;
    let metadata = config.metadata.clone().ok_or_else(|| argument("config.metadata", "is missing"))?;
    check_name("config.metadata.name", &metadata.name)?;
    let sandbox = server.store.sandbox(&request.pod_sandbox_id)?;
    // A sandbox that is being stopped gets no more containers.
    let _operation = sandbox.operation.lock().await;
    if !sandbox.state().ready {
        return Err(RpcError::State {
            kind: "sandbox",
            id: sandbox.id.clone(),
            state: "not ready",
            wanted: "a container needs a sandbox that is ready",
        });
    }
    check_security(&config, &sandbox)?;
    let asked = config.image.clone().unwrap_or_default();
    let image = server.images.resolve(&asked.image).map_err(image_error(&asked.image))?;
    let image = image.ok_or_else(|| RpcError::NotFound { kind: "image", id: asked.image.clone() })?;
    if let Some(kind) = &image.artifact_type {
        let message = format!("{:?} is an artifact ({kind}), which can be mounted but not run", asked.image);
        return Err(argument("config.image", message));
    }
    let id = new_id()?;
    let name = server.store.reserve(&container::name(&metadata, &sandbox), &id)?;
    let plan = Plan { id: id.clone(), config, image, asked };
    match make(&server, &sandbox, plan).await {
        Ok(container) => {
            let container = Arc::new(container);
            server.store.insert_container(container.clone());
            name.keep();
            server.announce(cri::ContainerEventType::ContainerCreatedEvent, &id, &sandbox);
            Ok(cri::CreateContainerResponse { container_id: id })
        }
        Err(error) => {
            tracing::warn!(pod = sandbox.pod(), container = metadata.name, error = chain(&error), "create container");
            undo(&server, &sandbox, &id).await;
            Err(error)
        }
    }
}

/// What is known before anything is made.
struct Plan {
    id: String,
    config: cri::ContainerConfig,
    image: ImageRecord,
    asked: cri::ImageSpec,
}

async fn make(server: &Arc<Server>, sandbox: &Arc<Sandbox>, plan: Plan) -> Result<Container, RpcError> {
    server.images.hold(&plan.id, &plan.image.id).await.map_err(image_error(&plan.asked.image))?;
    let volumes = image_volumes::hold(server, &plan.id, &plan.config).await?;
    let (writable, pod) = (server.config.container_folder(&plan.id), sandbox.clone());
    let folders = server.live().cdi_dirs.clone();
    let apparmor = server.apparmor.default_profile().await;
    let prepared = blocking(move || prepare(&pod, &writable, &folders, &volumes, apparmor, plan)).await?;
    let Prepared { mut record, config, linux } = prepared;
    let object = format!("{} in {}", record.id, sandbox.pod());
    let holder = match handlers::is_built_in(&sandbox.runtime_handler) {
        true => scope::hold(server, &linux.cgroups_path, &object, &linux.resources).await?,
        // The program makes it.
        false => None,
    };
    let failed = |source| RpcError::Shim { step: "create the container", object, source };
    let call = Request::Create { id: record.id.clone() };
    let limit = record.hook_times.creation();
    let reply = traces::step("shim", shim::call(&sandbox.folder, &call, limit)).await.map_err(failed)?;
    drop(holder);
    match reply {
        Reply::Created { pid } => record.pid = pid,
        other => {
            let source = unexpected(&other);
            return Err(RpcError::Shim { step: "create the container", object: sandbox.pod(), source });
        }
    }
    server.records.write(&record).map_err(file("write the record of container", &record.id))?;
    Ok(Container::new(record, config, sandbox.clone()))
}

/// What the shim has been told, and the record that is to be.
struct Prepared {
    record: ContainerRecord,
    config: cri::ContainerConfig,
    linux: Linux,
}

/// Writes everything that the shim reads. Blocking.
fn prepare(
    sandbox: &Sandbox,
    writable: &Path,
    cdi_dirs: &[PathBuf],
    volumes: &[HeldVolume],
    apparmor: Result<&'static str, String>,
    plan: Plan,
) -> Result<Prepared, RpcError> {
    let Plan { id, config, image, asked } = plan;
    let mut user = container_user::resolve(&config, &image)?;
    let context = security(&config);
    let profile = read_profile(&context)?;
    let defaults = ImageDefaults {
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        env: image.config.env.clone(),
        working_dir: image.config.working_dir.clone(),
    };
    let cdi = container_cdi::find(&config, cdi_dirs)?;
    user.add_groups(&cdi.groups);
    let mut devices = container_devices::find(&config, context.privileged)?;
    devices.extend(cdi.devices);
    let views: Vec<ImageVolume> = volumes.iter().map(|held| held.view.clone()).collect();
    let mut spec = container_config(&ContainerInputs {
        id: &id,
        config: &config,
        sandbox: &sandbox.config,
        sandbox_folder: &sandbox.folder,
        files: &sandbox.folder.join("files"),
        image: &defaults,
        user: &user,
        localhost_profile: profile.as_ref(),
        default_apparmor: apparmor.as_ref().map(|name| *name).map_err(String::as_str),
        volumes: &views,
        devices: &devices,
        more_env: &cdi.env,
        more_mounts: &cdi.mounts,
        hostname: &crate::sandbox::hostname(&sandbox.config),
        cgroup: sandbox.cgroup(&id)?,
    })?;
    spec.hooks = cdi.hooks;
    make_sources(&config)?;
    let log_path = log_path(&sandbox.config, &config)?;
    let shim_spec = ContainerSpec {
        version: 1,
        id: id.clone(),
        name: format!("{}/{}", sandbox.pod(), config.metadata.clone().unwrap_or_default().name),
        lower_dirs: image.lower_dirs.clone(),
        upper_dir: writable.join("upper"),
        work_dir: writable.join("work"),
        log_path: log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        pid: pid_source(&context),
    };
    let folder = sandbox.folder.join("containers").join(&id);
    make_folders(&[&folder, &shim_spec.upper_dir, &shim_spec.work_dir])?;
    for (name, text) in [("container.json", serde_json::to_vec(&shim_spec)), ("config.json", serde_json::to_vec(&spec))]
    {
        let path = folder.join(name);
        let written = text.map_err(std::io::Error::from).and_then(|text| std::fs::write(&path, text));
        written.map_err(file("write", &path))?;
    }
    let mut record = new_record(id, sandbox, &config, &image, &asked, &user, log_path);
    record.hook_times = spec.hooks.as_ref().map(HookTimes::of).unwrap_or_default();
    record.volume_refs = volumes.iter().map(|held| (held.view.image.clone(), held.image_ref.clone())).collect();
    Ok(Prepared { record, config, linux: spec.linux })
}

fn new_record(
    id: String,
    sandbox: &Sandbox,
    config: &cri::ContainerConfig,
    image: &ImageRecord,
    asked: &cri::ImageSpec,
    user: &ResolvedUser,
    log_path: Option<PathBuf>,
) -> ContainerRecord {
    let named = [&asked.user_specified_image, &asked.image]
        .into_iter()
        .filter_map(|name| name.parse::<orlop_image::Reference>().ok())
        .map(|reference| reference.to_string())
        .find(|name| image.repo_tags.contains(name));
    let user_name = [&asked.user_specified_image, &asked.image].into_iter().find(|name| !name.is_empty());
    let image_name = named.or_else(|| image.repo_tags.first().cloned()).or_else(|| user_name.cloned());
    ContainerRecord {
        version: version(),
        id,
        sandbox_id: sandbox.id.clone(),
        created_at: now(),
        config: Encoded::new(config),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
        image_name: image_name.unwrap_or_default(),
        log_path,
        stop_signal: signals::stop_signal(config.stop_signal, &image.config.stop_signal),
        user: UserRecord::from(user),
        pid: 0,
        exit: None,
        resources: None,
        volume_refs: Default::default(),
        hook_times: HookTimes::default(),
    }
}

/// Removes what a failed creation has made.
async fn undo(server: &Server, sandbox: &Sandbox, id: &str) {
    if let Err(error) = crate::container_remove::remove_parts(server, sandbox, id, Duration::ZERO).await {
        tracing::warn!(
            pod = sandbox.pod(),
            id,
            error = chain(&error),
            "undo a failed container; removing the sandbox removes the rest"
        );
    }
}

/// The security context of a container.
pub(crate) fn security(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn check_security(config: &cri::ContainerConfig, sandbox: &Sandbox) -> Result<(), RpcError> {
    let context = security(config);
    if context.run_as_group.is_some() && context.run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(argument("config.linux.security_context.run_as_group", "needs run_as_user or run_as_username"));
    }
    let pod = sandbox.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if context.privileged && !pod.is_some_and(|pod| pod.privileged) {
        let message = "a privileged container needs a sandbox that was run as privileged";
        return Err(argument("config.linux.security_context.privileged", message));
    }
    Ok(())
}

fn pid_source(context: &cri::LinuxContainerSecurityContext) -> PidSource {
    let options = context.namespace_options.clone().unwrap_or_default();
    match cri::NamespaceMode::try_from(options.pid) {
        Ok(cri::NamespaceMode::Node) => PidSource::Host,
        Ok(cri::NamespaceMode::Container) => PidSource::Container,
        Ok(cri::NamespaceMode::Target) => PidSource::Target(options.target_id),
        Ok(cri::NamespaceMode::Pod) | Err(_) => PidSource::Pod,
    }
}

/// The file that a Localhost profile names: an absolute path, as the kubelet gives it.
fn read_profile(context: &cri::LinuxContainerSecurityContext) -> Result<Option<Profile>, RpcError> {
    use std::io::Read;
    let localhost = cri::security_profile::ProfileType::Localhost as i32;
    let Some(profile) = context.seccomp.as_ref().filter(|profile| profile.profile_type == localhost) else {
        return Ok(None);
    };
    orlop_cri_spec::check_path("linux.security_context.seccomp.localhost_ref", &profile.localhost_ref)?;
    let path = Path::new(&profile.localhost_ref);
    let mut text = Vec::new();
    // A pipe would be waited for until somebody writes into it.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let opened = std::fs::File::options().read(true).custom_flags(flags.bits() as i32).open(path);
    let opened = opened.and_then(|profile| match profile.metadata()?.is_file() {
        true => profile.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut text),
        false => Err(std::io::Error::other("it is no plain file")),
    });
    opened.map_err(file("read the seccomp profile", path))?;
    if text.len() as u64 > PROFILE_BYTES_MAX {
        return Err(argument("linux.security_context.seccomp.localhost_ref", "the profile is larger than 1 MiB"));
    }
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| file("understand the seccomp profile", path)(std::io::Error::other(error)))
}

/// Bind sources that don't exist become folders, as users of other runtimes expect.
fn make_sources(config: &cri::ContainerConfig) -> Result<(), RpcError> {
    for mount in config.mounts.iter().filter(|mount| mount.host_path.starts_with('/')) {
        let path = Path::new(&mount.host_path);
        if std::fs::symlink_metadata(path).is_err() {
            std::fs::create_dir_all(path).map_err(file("make the source of a mount", path))?;
        }
    }
    Ok(())
}

/// The log file: `log_directory` of the pod and `log_path` of the container.
fn log_path(sandbox: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Result<Option<PathBuf>, RpcError> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&sandbox.log_directory).join(&config.log_path);
    let text = path.to_str().unwrap_or_default();
    orlop_cri_spec::check_path("config.log_path", text)?;
    if config.log_path.starts_with('/') {
        return Err(argument("config.log_path", "is relative to the pod's log_directory"));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(file("make the log folder", folder))?;
    }
    Ok(Some(path))
}

fn make_folders(folders: &[&Path]) -> Result<(), RpcError> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    for folder in folders {
        private.create(folder).map_err(file("make the folder", *folder))?;
        if folder.ends_with("upper") {
            // It becomes the container's root folder, which every user of the container has to pass.
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder, open).map_err(file("set the mode of", *folder))?;
        }
    }
    Ok(())
}

pub(crate) fn image_error(image: &str) -> impl FnOnce(orlop_image::ImageError) -> RpcError {
    let image = image.to_string();
    move |source| RpcError::Image { image, source }
}
