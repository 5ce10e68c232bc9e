//! The environment of a container: values, fields, keys of ConfigMaps and Secrets, services.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector, Secret, Service,
};

use crate::env_file::value_in_file;
use crate::expansion::expand;

/// Why an environment can't be made; the text becomes the message of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// An object is missing.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object lacks a key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
    },
    /// A file of variables can't be used.
    #[error("couldn't parse env file: {path} of volume {volume}: {why}")]
    File {
        /// The volume.
        volume: String,
        /// The file, within the volume.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A file of variables lacks a key.
    #[error("environment variable key {key:?} not found in file {path:?} of volume {volume}")]
    NoKeyInFile {
        /// The key.
        key: String,
        /// The file, within the volume.
        path: String,
        /// The volume.
        volume: String,
    },
    /// A field of the pod can't be told.
    #[error("env {variable}: {message}")]
    Field {
        /// The variable.
        variable: String,
        /// The cause.
        message: String,
    },
}

/// ConfigMaps and Secrets that an environment refers to, by name. `None` is an object that does not exist.
#[derive(Clone, Debug, Default)]
pub struct EnvObjects {
    /// ConfigMaps.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Files in volumes, by volume and path: what they say, none where there is no file, or why they can't be read.
    pub files: BTreeMap<(String, String), Result<Option<String>, String>>,
}

/// Names of the ConfigMaps and of the Secrets that a container's environment refers to.
pub fn env_references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|source| source.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|source| source.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
    }
    for list in [&mut config_maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (config_maps, secrets)
}

/// Volume and path of the files that a container's environment refers to.
pub fn file_references(container: &Container) -> Vec<(String, String)> {
    let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    sources
        .filter_map(|source| source.file_key_ref.as_ref())
        .map(|file| (file.volume_name.clone(), file.path.clone()))
        .collect()
}

/// How fields of the pod and of its resources are told.
pub struct FieldSources<'a> {
    /// `fieldRef`.
    pub field: &'a dyn Fn(&ObjectFieldSelector) -> Result<String, String>,
    /// `resourceFieldRef`.
    pub resource: &'a dyn Fn(&ResourceFieldSelector) -> Result<String, String>,
}

/// The environment of a container, in the order: envFrom, env, services that neither names.
pub fn resolve_env(
    container: &Container,
    namespace: &str,
    services: &BTreeMap<String, String>,
    objects: &EnvObjects,
    sources: &FieldSources<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if known.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let pairs = if let Some(source) = &from.config_map_ref {
            whole_config_map(objects, &source.name, source.optional)?
        } else if let Some(source) = &from.secret_ref {
            whole_secret(objects, &source.name, source.optional)?
        } else {
            Vec::new()
        };
        for (key, value) in pairs {
            let name = format!("{prefix}{key}");
            if !name.is_empty() && !name.contains('=') {
                set(&mut known, name, value);
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = if let Some(source) = &variable.value_from {
            match from_source(&variable.name, source, namespace, objects, sources)? {
                Some(value) => value,
                None => continue,
            }
        } else {
            let lookup = |name: &str| known.get(name).or_else(|| services.get(name)).cloned();
            expand(variable.value.as_deref().unwrap_or_default(), &lookup)
        };
        set(&mut known, variable.name.clone(), value);
    }
    let mut env: Vec<(String, String)> = Vec::with_capacity(order.len() + services.len());
    for name in order {
        let value = known.get(&name).cloned().unwrap_or_default();
        env.push((name, value));
    }
    env.extend(
        services
            .iter()
            .filter(|(name, _)| !known.contains_key(*name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    Ok(env)
}

fn whole_config_map(
    objects: &EnvObjects,
    name: &str,
    optional: Option<bool>,
) -> Result<Vec<(String, String)>, EnvError> {
    match objects.config_maps.get(name).and_then(Option::as_ref) {
        Some(object) => Ok(object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()),
        None if optional == Some(true) => Ok(Vec::new()),
        None => Err(EnvError::NotFound { kind: "configmap", name: name.to_owned() }),
    }
}

fn whole_secret(objects: &EnvObjects, name: &str, optional: Option<bool>) -> Result<Vec<(String, String)>, EnvError> {
    match objects.secrets.get(name).and_then(Option::as_ref) {
        Some(object) => Ok(object
            .data
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned()))
            .collect()),
        None if optional == Some(true) => Ok(Vec::new()),
        None => Err(EnvError::NotFound { kind: "secret", name: name.to_owned() }),
    }
}

fn from_source(
    variable: &str,
    source: &EnvVarSource,
    namespace: &str,
    objects: &EnvObjects,
    sources: &FieldSources<'_>,
) -> Result<Option<String>, EnvError> {
    let field_error = |message: String| EnvError::Field { variable: variable.to_owned(), message };
    if let Some(selector) = &source.field_ref {
        return (sources.field)(selector).map(Some).map_err(field_error);
    }
    if let Some(selector) = &source.resource_field_ref {
        return (sources.resource)(selector).map(Some).map_err(field_error);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(object) = objects.config_maps.get(&selector.name).and_then(Option::as_ref) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvError::NotFound { kind: "configmap", name: selector.name.clone() })
            };
        };
        let value = object.data.as_ref().and_then(|data| data.get(&selector.key)).cloned();
        return keyed(value, optional, &selector.key, "ConfigMap", namespace, &selector.name);
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(object) = objects.secrets.get(&selector.name).and_then(Option::as_ref) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvError::NotFound { kind: "secret", name: selector.name.clone() })
            };
        };
        let value = object
            .data
            .as_ref()
            .and_then(|data| data.get(&selector.key))
            .map(|value| String::from_utf8_lossy(&value.0).into_owned());
        return keyed(value, optional, &selector.key, "Secret", namespace, &selector.name);
    }
    if let Some(selector) = &source.file_key_ref {
        return from_file(selector, objects);
    }
    Err(field_error("valueFrom names no source that this node knows".into()))
}

fn from_file(selector: &FileKeySelector, objects: &EnvObjects) -> Result<Option<String>, EnvError> {
    let (volume, path) = (selector.volume_name.clone(), selector.path.clone());
    let fail = |why: String| EnvError::File { volume: volume.clone(), path: path.clone(), why };
    let optional = selector.optional == Some(true);
    let text = match objects.files.get(&(volume.clone(), path.clone())) {
        Some(Ok(Some(text))) => text,
        Some(Ok(None)) if optional => return Ok(None),
        Some(Err(why)) => return Err(fail(why.clone())),
        Some(Ok(None)) | None => return Err(fail("there is no such file".to_owned())),
    };
    match value_in_file(text, &selector.key).map_err(|error| fail(error.to_string()))? {
        None if !optional => Err(EnvError::NoKeyInFile { key: selector.key.clone(), path, volume }),
        value => Ok(value),
    }
}

fn keyed(
    value: Option<String>,
    optional: bool,
    key: &str,
    kind: &'static str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, EnvError> {
    match value {
        None if !optional => {
            Err(EnvError::NoKey { key: key.to_owned(), kind, namespace: namespace.to_owned(), name: name.to_owned() })
        }
        value => Ok(value),
    }
}

/// Environment variables that tell of services: those of the pod's namespace if it wants links, and always
/// `default/kubernetes`.
pub fn service_env(namespace: &str, links: bool, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for service in services {
        let (of, name) = (
            service.metadata.namespace.as_deref().unwrap_or_default(),
            service.metadata.name.as_deref().unwrap_or_default(),
        );
        let master = of == "default" && name == "kubernetes";
        let Some(spec) = service.spec.as_ref().filter(|_| master || (links && of == namespace)) else { continue };
        let Some(host) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable_name(name);
        // A service of the pod's namespace wins over the master service of the same name.
        if master && of != namespace && env.contains_key(&format!("{prefix}_SERVICE_HOST")) {
            continue;
        }
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        env.insert(format!("{prefix}_SERVICE_HOST"), host.to_owned());
        env.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                env.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                env.insert(format!("{prefix}_PORT"), url.clone());
            }
            let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            env.insert(stem.clone(), url);
            env.insert(format!("{stem}_PROTO"), protocol.to_lowercase());
            env.insert(format!("{stem}_PORT"), port.port.to_string());
            env.insert(format!("{stem}_ADDR"), host.to_owned());
        }
    }
    env
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    fn objects() -> EnvObjects {
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}})).unwrap();
        let secret: Secret = serde_json::from_value(serde_json::json!({"data": {"p": "c2VjcmV0"}})).unwrap();
        EnvObjects {
            config_maps: BTreeMap::from([("cm".into(), Some(Arc::new(map))), ("gone".into(), None)]),
            secrets: BTreeMap::from([("s".into(), Some(Arc::new(secret)))]),
            files: BTreeMap::from([
                (("v".into(), "env".into()), Ok(Some("K='from file'".into()))),
                (("v".into(), "none".into()), Ok(None)),
                (("v".into(), "odd".into()), Ok(Some("K=1".into()))),
            ]),
        }
    }

    fn resolve(value: serde_json::Value) -> Result<Vec<(String, String)>, EnvError> {
        let services =
            BTreeMap::from([("DB_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned()), ("A".to_owned(), "svc".to_owned())]);
        let sources = FieldSources {
            field: &|selector| Ok(format!("<{}>", selector.field_path)),
            resource: &|selector| Ok(selector.resource.clone()),
        };
        resolve_env(&container(value), "ns", &services, &objects(), &sources)
    }

    #[test]
    fn sources_expansion_and_order() {
        let env = resolve(serde_json::json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"configMapRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "A", "value": "x"},
                {"name": "B", "value": "$(A)-$(DB_SERVICE_HOST)-$(P_a)-$(NO)"},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "p", "optional": true}}},
                {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "K"}}},
                {"name": "NO1", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "L", "optional": true}}},
                {"name": "NO2", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "none", "key": "K", "optional": true}}},
                {"name": "P_b", "value": "over"}
            ]}))
        .unwrap();
        let text: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text,
            [
                "P_a=1",
                "P_b=over",
                "A=x",
                "B=x-10.0.0.1-1-$(NO)",
                "POD=<metadata.name>",
                "PW=secret",
                "FILE=from file",
                "DB_SERVICE_HOST=10.0.0.1"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (source, want) in [
            (serde_json::json!({"configMapKeyRef": {"name": "gone", "key": "k"}}), "configmap \"gone\" not found"),
            (
                serde_json::json!({"configMapKeyRef": {"name": "cm", "key": "k"}}),
                "couldn't find key k in ConfigMap ns/cm",
            ),
            (serde_json::json!({"secretKeyRef": {"name": "s", "key": "k"}}), "couldn't find key k in Secret ns/s"),
            (
                serde_json::json!({"fileKeyRef": {"volumeName": "v", "path": "env", "key": "L"}}),
                "environment variable key \"L\" not found in file \"env\" of volume v",
            ),
            (
                serde_json::json!({"fileKeyRef": {"volumeName": "v", "path": "none", "key": "K", "optional": false}}),
                "couldn't parse env file: none of volume v: there is no such file",
            ),
            (
                serde_json::json!({"fileKeyRef": {"volumeName": "v", "path": "odd", "key": "K", "optional": true}}),
                "couldn't parse env file: odd of volume v: line 1: the value is not in single quotes",
            ),
        ] {
            let error =
                resolve(serde_json::json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]})).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns", "name": "my-db"},
            "spec": {"clusterIP": "10.0.0.7", "ports": [{"name": "sql", "port": 5432}, {"port": 53, "protocol": "UDP"}]}}))
        .unwrap();
        let list = [Arc::new(service)];
        assert!(service_env("ns", false, &list).is_empty());
        let env = service_env("ns", true, &list);
        for (name, value) in [
            ("MY_DB_SERVICE_HOST", "10.0.0.7"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_SQL", "5432"),
            ("MY_DB_PORT", "tcp://10.0.0.7:5432"),
            ("MY_DB_PORT_53_UDP", "udp://10.0.0.7:53"),
            ("MY_DB_PORT_53_UDP_ADDR", "10.0.0.7"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
