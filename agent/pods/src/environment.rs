//! The environment of a container, with the objects that it refers to fetched side by side.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers::{self, SpecContainer};
use orlop_agent_core::downward;
use orlop_agent_core::env::{EnvObjects, FieldSources, env_references, file_references, resolve_env, service_env};
use orlop_agent_core::ports::{MountedVolume, PortError};
use orlop_kernel::path;
use rustix::fs::OFlags;

use crate::shared::Shared;

/// Longest file of variables in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Longest wait for the files of variables.
const FILES_DEADLINE: Duration = Duration::from_secs(10);

/// The environment of a container. `pod` has its current status, for the fields of it; `volumes` are those of the pod,
/// for files of variables.
///
/// # Errors
/// In the words of `CreateContainerConfigError`.
pub(crate) async fn environment(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
    volumes: &BTreeMap<String, MountedVolume>,
) -> Result<Vec<(String, String)>, String> {
    let namespace = containers::namespace(pod);
    let (objects, services, files) = tokio::join!(
        fetch_objects(shared, namespace, container),
        fetch_services(shared, pod, namespace),
        read_files(shared, container, volumes)
    );
    let (objects, services) = (EnvObjects { files: files?, ..objects? }, services?);
    let allocatable = shared.ports.node.allocatable();
    let sources = FieldSources {
        field: &|selector| downward::field(pod, &selector.field_path),
        resource: &|selector| downward::resource(pod, container.name(), selector, &allocatable),
    };
    resolve_env(&container.container, namespace, &services, &objects, &sources).map_err(|error| error.to_string())
}

/// What does not exist is `None`; what can't be asked for just now is an error.
fn known<T>(result: Result<Arc<T>, PortError>) -> Result<Option<Arc<T>>, String> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(PortError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn fetch_objects(shared: &Shared, namespace: &str, container: &SpecContainer<'_>) -> Result<EnvObjects, String> {
    let (config_maps, secrets) = env_references(&container.container);
    let objects = &shared.ports.objects;
    let config_maps = join_all(config_maps.into_iter().map(|name| async move {
        let object = known(objects.config_map(namespace, &name).await);
        object.map(|object| (name, object))
    }));
    let secrets = try_join_all(secrets.into_iter().map(|name| async move {
        let object = known(objects.secret(namespace, &name).await);
        object.map(|object| (name, object))
    }));
    let (config_maps, secrets) = tokio::join!(config_maps, secrets);
    let config_maps: Result<_, String> = config_maps.into_iter().collect();
    Ok(EnvObjects { config_maps: config_maps?, secrets: secrets?.into_iter().collect(), ..EnvObjects::default() })
}

type Files = BTreeMap<(String, String), Result<Option<String>, String>>;

/// Reads the files of variables in the pod's volumes.
async fn read_files(
    shared: &Shared,
    container: &SpecContainer<'_>,
    volumes: &BTreeMap<String, MountedVolume>,
) -> Result<Files, String> {
    let wanted = file_references(&container.container);
    if wanted.is_empty() {
        return Ok(Files::new());
    }
    let folder =
        |volume: &str| volumes.get(volume).filter(|found| found.image.is_none()).map(|found| found.host_path.clone());
    let mut places = Vec::new();
    for (volume, file) in wanted {
        let folder =
            folder(&volume).ok_or_else(|| format!("cannot find the volume {volume:?} referenced by FileKeyRef"))?;
        places.push((volume, file, folder));
    }
    let read = shared.config.pace.blocking(move || -> Files {
        let text = |folder: &Path, file: &str| read_file(folder, file);
        places.into_iter().map(|(volume, file, folder)| ((volume, file.clone()), text(&folder, &file))).collect()
    });
    match tokio::time::timeout(FILES_DEADLINE, read).await {
        Ok(files) => files.map_err(|error| error.to_string()),
        Err(_) => Err("couldn't parse env file: reading the files of variables hangs".to_owned()),
    }
}

/// Text of a file that containers may have written: no link leads out of the volume, and nothing but a file is waited for.
fn read_file(folder: &Path, file: &str) -> Result<Option<String>, String> {
    let root = path::open_root(folder).map_err(|error| error.to_string())?;
    let opened = match path::open_in_root(&root, Path::new(file), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(opened) => std::fs::File::from(opened),
        Err(error) if path::is_absent(&error) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !opened.metadata().is_ok_and(|facts| facts.is_file()) {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    opened.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("it is longer than {FILE_MAX} bytes"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| "it is not text in UTF-8".to_owned())
}

async fn fetch_services(shared: &Shared, pod: &Pod, namespace: &str) -> Result<BTreeMap<String, String>, String> {
    let links = containers::spec(pod).and_then(|spec| spec.enable_service_links).unwrap_or(true);
    match shared.ports.objects.services(namespace).await {
        Ok(services) => Ok(service_env(namespace, links, &services)),
        // A static pod must start without the API.
        Err(_) if containers::is_static(pod) => Ok(Default::default()),
        Err(error) => Err(format!("services have not yet been read at least once, cannot construct envvars: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_within_their_volume() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), "outside").unwrap();
        std::fs::write(volume.join("sub/env"), "K='v'").unwrap();
        std::os::unix::fs::symlink("sub/env", volume.join("link")).unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        for (file, want) in [
            ("sub/env", Ok(Some("K='v'"))),
            ("link", Ok(Some("K='v'"))),
            ("out", Ok(None)),
            ("none", Ok(None)),
            ("sub", Err(())),
        ] {
            let found = read_file(&volume, file);
            assert_eq!(found.as_ref().map(|text| text.as_deref()).map_err(|_| ()), want, "{file}");
        }
        std::fs::write(volume.join("large"), vec![b'#'; FILE_MAX as usize + 1]).unwrap();
        assert!(read_file(&volume, "large").is_err());
    }
}
