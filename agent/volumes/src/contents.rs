//! Contents of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
};
use orlop_agent_core::ports::PortError;
use orlop_agent_core::{containers, downward};

use crate::atomic_writer::File;
use crate::config::VolumesConfig;
use crate::layout::plugin;
use crate::ownership::FsGroup;

/// Mode of files when nothing is said.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token when nothing is said, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// Files of a volume by path.
pub(crate) type Files = BTreeMap<String, File>;

/// Why a volume has no contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentsError {
    /// The object isn't there.
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    /// The object has no such key.
    #[error("{kind} references non-existent {word} key: {key}")]
    NoKey { kind: &'static str, word: &'static str, key: String },
    /// A field or resource.
    #[error("{0}")]
    Field(String),
    /// The API can't be asked.
    #[error("{0}")]
    Api(String),
    /// A source.
    #[error("projected source {0} is not served by this node")]
    Unsupported(&'static str),
}

/// Folder of the kind of volume, and whether its files are kept in memory rather than on disk, as the kubelet does.
pub(crate) fn place(volume: &Volume) -> (&'static str, bool) {
    if volume.config_map.is_some() {
        (plugin::CONFIG_MAP, false)
    } else if volume.secret.is_some() {
        (plugin::SECRET, true)
    } else if volume.downward_api.is_some() {
        (plugin::DOWNWARD_API, true)
    } else {
        (plugin::PROJECTED, true)
    }
}

/// Collects the files of a volume.
pub(crate) async fn collect(config: &VolumesConfig, pod: &Pod, volume: &Volume) -> Result<Files, ContentsError> {
    let collector = Collector { config, pod };
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let wanted = Wanted {
            kind: "configmap",
            word: "config",
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional == Some(true),
            mode: source.default_mode.unwrap_or(DEFAULT_MODE),
        };
        collector.config_map(&wanted, &mut files).await?;
    } else if let Some(source) = &volume.secret {
        let wanted = Wanted {
            kind: "secret",
            word: "secret",
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            optional: source.optional == Some(true),
            mode: source.default_mode.unwrap_or(DEFAULT_MODE),
        };
        collector.secret(&wanted, &mut files).await?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector.fields(source.items.as_deref().unwrap_or_default(), mode, &mut files)?;
    } else if let Some(source) = &volume.projected {
        collector.projected(source, &mut files).await?;
    }
    Ok(files)
}

/// What is asked of a ConfigMap or Secret.
struct Wanted<'a> {
    kind: &'static str,
    /// What the kubelet calls a key of it.
    word: &'static str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: i32,
}

impl Wanted<'_> {
    /// The object, or nothing where it may be absent.
    fn found<T>(&self, result: Result<T, PortError>) -> Result<Option<T>, ContentsError> {
        match result {
            Ok(object) => Ok(Some(object)),
            Err(PortError::NotFound { .. }) if self.optional => Ok(None),
            Err(PortError::NotFound { .. }) => {
                Err(ContentsError::NotFound { kind: self.kind, name: self.name.to_owned() })
            }
            Err(error) => Err(ContentsError::Api(error.to_string())),
        }
    }

    /// All keys, or those that are named, each in its place.
    fn pick(&self, data: BTreeMap<String, Vec<u8>>, files: &mut Files) -> Result<(), ContentsError> {
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            files.extend(data.into_iter().map(|(key, bytes)| (key, file(bytes, self.mode))));
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    files.insert(item.path.clone(), file(bytes.clone(), item.mode.unwrap_or(self.mode)));
                }
                None if self.optional => {}
                None => {
                    let (kind, word) = (self.kind, self.word);
                    return Err(ContentsError::NoKey { kind, word, key: item.key.clone() });
                }
            }
        }
        Ok(())
    }
}

fn file(bytes: Vec<u8>, mode: i32) -> File {
    File { bytes, mode: mode.unsigned_abs() & 0o7777, owner: None }
}

struct Collector<'a> {
    config: &'a VolumesConfig,
    pod: &'a Pod,
}

impl Collector<'_> {
    async fn config_map(&self, wanted: &Wanted<'_>, files: &mut Files) -> Result<(), ContentsError> {
        let object = self.config.objects.config_map(containers::namespace(self.pod), wanted.name).await;
        let Some(object) = wanted.found(object)? else { return Ok(()) };
        let mut data: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        data.extend(object.data.iter().flatten().map(|(key, text)| (key.clone(), text.clone().into_bytes())));
        data.extend(object.binary_data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())));
        wanted.pick(data, files)
    }

    async fn secret(&self, wanted: &Wanted<'_>, files: &mut Files) -> Result<(), ContentsError> {
        let object = self.config.objects.secret(containers::namespace(self.pod), wanted.name).await;
        let Some(object) = wanted.found(object)? else { return Ok(()) };
        let data = object.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect();
        wanted.pick(data, files)
    }

    fn fields(&self, items: &[DownwardAPIVolumeFile], mode: i32, files: &mut Files) -> Result<(), ContentsError> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward::field(self.pod, &field.field_path),
                (_, Some(resource)) => downward::resource(self.pod, "", resource, &self.config.allocatable),
                _ => Err(format!("file {:?} names neither a field nor a resource", item.path)),
            };
            let text = text.map_err(ContentsError::Field)?;
            files.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(())
    }

    async fn projected(&self, source: &ProjectedVolumeSource, files: &mut Files) -> Result<(), ContentsError> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            if let Some(source) = &part.config_map {
                let (items, optional) = (source.items.as_deref(), source.optional == Some(true));
                let wanted = Wanted { kind: "configmap", word: "config", name: &source.name, items, optional, mode };
                self.config_map(&wanted, files).await?;
            } else if let Some(source) = &part.secret {
                let (items, optional) = (source.items.as_deref(), source.optional == Some(true));
                let wanted = Wanted { kind: "secret", word: "secret", name: &source.name, items, optional, mode };
                self.secret(&wanted, files).await?;
            } else if let Some(source) = &part.downward_api {
                self.fields(source.items.as_deref().unwrap_or_default(), mode, files)?;
            } else if let Some(source) = &part.service_account_token {
                self.token(source, mode, files).await?;
            } else if part.cluster_trust_bundle.is_some() {
                return Err(ContentsError::Unsupported("clusterTrustBundle"));
            } else if part.pod_certificate.is_some() {
                return Err(ContentsError::Unsupported("podCertificate"));
            }
        }
        Ok(())
    }

    async fn token(
        &self,
        source: &ServiceAccountTokenProjection,
        mode: i32,
        files: &mut Files,
    ) -> Result<(), ContentsError> {
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let audience = source.audience.as_deref().unwrap_or_default();
        let text = self.config.objects.token(self.pod, audience, seconds).await;
        let text = text.map_err(|error| ContentsError::Api(format!("failed to fetch token: {error}")))?;
        // A token is for the pod's user alone where that is known; its group gets to read it later.
        let owner = only_user(self.pod);
        let private = owner.is_some() || FsGroup::of(self.pod).is_some();
        let mode = if private { 0o600 } else { mode };
        files.insert(source.path.clone(), File { owner, ..file(text.into_bytes(), mode) });
        Ok(())
    }
}

/// The user that all containers run as, if it is one (kubelet `FsUserFrom`).
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let all = containers::all_containers(pod).map(|container| {
        let own = container.container.security_context.as_ref().and_then(|own| own.run_as_user);
        own.or(of_pod)
    });
    let mut users: Vec<Option<i64>> = all.collect();
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
        let mut wanted =
            Wanted { kind: "configmap", word: "config", name: "m", items: None, optional: false, mode: DEFAULT_MODE };
        let mut all = Files::new();
        wanted.pick(data.clone(), &mut all).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        wanted.items = Some(&items);
        let mut one = Files::new();
        wanted.pick(data, &mut one).unwrap();
        assert_eq!((one.len(), one["x/a"].mode), (1, 0o400));
        let missing = wanted.pick(BTreeMap::new(), &mut one).unwrap_err();
        assert_eq!(missing.to_string(), "configmap references non-existent config key: a");
        wanted.optional = true;
        wanted.pick(BTreeMap::new(), &mut one).unwrap();
    }

    #[test]
    fn one_user_or_none() {
        let pod = |spec| serde_json::from_value::<Pod>(json!({"spec": spec})).unwrap();
        for (spec, expected) in [
            (json!({"containers": [{"name": "a"}]}), None),
            (json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b"}]}), Some(5)),
            (
                json!({"securityContext": {"runAsUser": 5},
                    "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]}),
                None,
            ),
        ] {
            assert_eq!(only_user(&pod(spec.clone())), expected, "{spec}");
        }
    }
}
