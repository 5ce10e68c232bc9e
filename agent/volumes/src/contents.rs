//! Contents of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume};
use orlop_agent_core::ports::PortError;
use orlop_agent_core::{containers, downward};

use crate::PodVolumes;
use crate::atomic_writer::File;

/// Mode of files when nothing is said.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token when nothing is said, in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// Tokens are renewed after this share of their life, and each day (kubelet's token manager).
const TOKEN_SHARE: f64 = 0.8;
/// See above.
const TOKEN_DAY: Duration = Duration::from_secs(24 * 3600);

/// Files of a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub(crate) files: BTreeMap<String, File>,
    /// When a part of it has to be renewed.
    pub(crate) refresh_after: Option<Duration>,
}

impl Contents {
    fn add(&mut self, path: String, bytes: Vec<u8>, mode: i32) {
        self.files.insert(path, File { bytes, mode: mode as u32, owner: None });
    }
}

/// Collects the files of a volume.
pub(crate) async fn collect(volumes: &PodVolumes, pod: &Pod, volume: &Volume) -> Result<Contents, String> {
    let mut contents = Contents::default();
    if let Some(source) = &volume.config_map {
        let wanted = Wanted {
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or_default(),
            mode: source.default_mode.unwrap_or(DEFAULT_MODE),
        };
        config_map(volumes, pod, &wanted, &mut contents).await?;
    } else if let Some(source) = &volume.secret {
        let wanted = Wanted {
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or_default(),
            mode: source.default_mode.unwrap_or(DEFAULT_MODE),
        };
        secret(volumes, pod, &wanted, &mut contents).await?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        facts(volumes, pod, source.items.as_deref().unwrap_or_default(), mode, &mut contents)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            if let Some(source) = &part.config_map {
                let optional = source.optional.unwrap_or_default();
                let wanted = Wanted { name: &source.name, items: source.items.as_deref(), optional, mode };
                config_map(volumes, pod, &wanted, &mut contents).await?;
            } else if let Some(source) = &part.secret {
                let optional = source.optional.unwrap_or_default();
                let wanted = Wanted { name: &source.name, items: source.items.as_deref(), optional, mode };
                secret(volumes, pod, &wanted, &mut contents).await?;
            } else if let Some(source) = &part.downward_api {
                facts(volumes, pod, source.items.as_deref().unwrap_or_default(), mode, &mut contents)?;
            } else if let Some(source) = &part.service_account_token {
                token(volumes, pod, source, mode, &mut contents).await?;
            } else {
                return Err("this kind of projected source is not supported by this node".into());
            }
        }
    }
    Ok(contents)
}

/// What is asked of a ConfigMap or Secret.
struct Wanted<'a> {
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: i32,
}

/// Not found is fine where the volume says so.
fn found<T>(result: Result<T, PortError>, optional: bool) -> Result<Option<T>, String> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(PortError::NotFound { .. }) if optional => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn config_map(volumes: &PodVolumes, pod: &Pod, wanted: &Wanted<'_>, into: &mut Contents) -> Result<(), String> {
    let object = volumes.config.objects.config_map(containers::namespace(pod), wanted.name).await;
    let mut data = BTreeMap::new();
    if let Some(object) = found(object, wanted.optional)? {
        data.extend(object.data.iter().flatten().map(|(key, text)| (key.clone(), text.clone().into_bytes())));
        data.extend(object.binary_data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())));
    }
    pick(data, wanted, "config", into)
}

async fn secret(volumes: &PodVolumes, pod: &Pod, wanted: &Wanted<'_>, into: &mut Contents) -> Result<(), String> {
    let object = volumes.config.objects.secret(containers::namespace(pod), wanted.name).await;
    let mut data = BTreeMap::new();
    if let Some(object) = found(object, wanted.optional)? {
        data.extend(object.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())));
    }
    pick(data, wanted, "secret", into)
}

/// All keys, or those that are named, each in its place.
fn pick(data: BTreeMap<String, Vec<u8>>, wanted: &Wanted<'_>, kind: &str, into: &mut Contents) -> Result<(), String> {
    let Some(items) = wanted.items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            into.add(key, bytes, wanted.mode);
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => into.add(item.path.clone(), bytes.clone(), item.mode.unwrap_or(wanted.mode)),
            None if wanted.optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(())
}

fn facts(
    volumes: &PodVolumes,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    into: &mut Contents,
) -> Result<(), String> {
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path)?,
            (_, Some(resource)) => downward::resource(pod, "", resource, &volumes.config.allocatable)?,
            _ => return Err(format!("downwardAPI file {}: names neither a field nor a resource", item.path)),
        };
        into.add(item.path.clone(), text.into_bytes(), item.mode.unwrap_or(mode));
    }
    Ok(())
}

async fn token(
    volumes: &PodVolumes,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    into: &mut Contents,
) -> Result<(), String> {
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let audience = source.audience.as_deref().unwrap_or_default();
    let text = volumes.config.objects.token(pod, audience, seconds).await.map_err(|error| error.to_string())?;
    let renewal = Duration::from_secs(seconds.max(0) as u64).mul_f64(TOKEN_SHARE).min(TOKEN_DAY);
    into.refresh_after = Some(into.refresh_after.map_or(renewal, |other| other.min(renewal)));
    // A token is for the pod's user alone where that is known (kubelet: projected volumes, `FsUser`).
    let owner = only_user(pod);
    let private = owner.is_some() || crate::ownership::group(pod).is_some();
    let mode = if private { 0o600 } else { mode };
    into.files.insert(source.path.clone(), File { bytes: text.into_bytes(), mode: mode as u32, owner });
    Ok(())
}

/// The user that all containers run as, if it is one.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let users = all.map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(of_pod));
    let mut users: Vec<Option<i64>> = users.collect();
    users.dedup();
    match users.as_slice() {
        [Some(user)] => u32::try_from(*user).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn named_keys_come_in_their_places() {
        let data: BTreeMap<String, Vec<u8>> = [("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())].into();
        let items = [KeyToPath { key: "a".into(), path: "x/a".into(), mode: Some(0o400) }];
        let mut wanted = Wanted { name: "m", items: None, optional: false, mode: DEFAULT_MODE };
        let mut all = Contents::default();
        pick(data.clone(), &wanted, "config", &mut all).unwrap();
        assert_eq!(all.files.keys().collect::<Vec<_>>(), ["a", "b"]);
        wanted.items = Some(&items);
        let mut one = Contents::default();
        pick(data, &wanted, "config", &mut one).unwrap();
        assert_eq!(one.files["x/a"].mode, 0o400);
        let missing = pick(BTreeMap::new(), &wanted, "config", &mut one).unwrap_err();
        assert_eq!(missing, "references non-existent config key: a");
        wanted.optional = true;
        pick(BTreeMap::new(), &wanted, "config", &mut one).unwrap();
    }

    #[test]
    fn one_user_or_none() {
        let pod = |spec| serde_json::from_value::<Pod>(json!({"spec": spec})).unwrap();
        for (spec, expected) in [
            (json!({"containers": [{"name": "a"}]}), None),
            (json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b"}]}), Some(5)),
            (
                json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]}),
                None,
            ),
        ] {
            assert_eq!(only_user(&pod(spec.clone())), expected, "{spec}");
        }
    }
}
