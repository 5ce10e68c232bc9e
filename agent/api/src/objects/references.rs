//! Which ConfigMaps and Secrets a pod refers to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, LocalObjectReference, Pod, PodSpec, Volume};

/// The ConfigMaps and Secrets of one or several pods, as namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps.
    pub config_maps: BTreeSet<(String, String)>,
    /// Secrets.
    pub secrets: BTreeSet<(String, String)>,
}

impl References {
    /// Adds what `pod` refers to: env, envFrom, volumes, projected sources, pull secrets; of all kinds of containers.
    pub fn add(&mut self, pod: &Pod) {
        let (Some(namespace), Some(spec)) = (pod.metadata.namespace.as_deref(), pod.spec.as_ref()) else { return };
        let mut names = Names::default();
        names.add_spec(spec);
        let own = |names: BTreeSet<String>| names.into_iter().map(|name| (namespace.to_owned(), name));
        self.config_maps.extend(own(names.config_maps));
        self.secrets.extend(own(names.secrets));
    }
}

#[derive(Default)]
struct Names {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

impl Names {
    fn add_spec(&mut self, spec: &PodSpec) {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            self.add_env(container.env.as_deref(), container.env_from.as_deref());
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            self.add_env(container.env.as_deref(), container.env_from.as_deref());
        }
        for secret in spec.image_pull_secrets.iter().flatten() {
            self.secret(Some(&secret.name));
        }
        for volume in spec.volumes.iter().flatten() {
            self.add_volume(volume);
        }
    }

    fn add_env(&mut self, env: Option<&[EnvVar]>, env_from: Option<&[EnvFromSource]>) {
        for source in env.into_iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            self.config_map(source.config_map_key_ref.as_ref().map(|key| &key.name));
            self.secret(source.secret_key_ref.as_ref().map(|key| &key.name));
        }
        for source in env_from.into_iter().flatten() {
            self.config_map(source.config_map_ref.as_ref().map(|map| &map.name));
            self.secret(source.secret_ref.as_ref().map(|secret| &secret.name));
        }
    }

    fn add_volume(&mut self, volume: &Volume) {
        self.config_map(volume.config_map.as_ref().map(|map| &map.name));
        self.secret(volume.secret.as_ref().and_then(|secret| secret.secret_name.as_ref()));
        for source in volume.projected.iter().filter_map(|projected| projected.sources.as_ref()).flatten() {
            self.config_map(source.config_map.as_ref().map(|map| &map.name));
            self.secret(source.secret.as_ref().map(|secret| &secret.name));
        }
        let reference = |local: &Option<LocalObjectReference>| local.as_ref().map(|local| local.name.clone());
        let legacy = [
            volume.csi.as_ref().and_then(|csi| reference(&csi.node_publish_secret_ref)),
            volume.flex_volume.as_ref().and_then(|flex| reference(&flex.secret_ref)),
            volume.cephfs.as_ref().and_then(|ceph| reference(&ceph.secret_ref)),
            volume.rbd.as_ref().and_then(|rbd| reference(&rbd.secret_ref)),
            volume.iscsi.as_ref().and_then(|iscsi| reference(&iscsi.secret_ref)),
            volume.azure_file.as_ref().map(|azure| azure.secret_name.clone()),
        ];
        for name in legacy.iter().flatten() {
            self.secret(Some(name));
        }
    }

    fn config_map(&mut self, name: Option<&String>) {
        self.config_maps.extend(name.filter(|name| !name.is_empty()).cloned());
    }

    fn secret(&mut self, name: Option<&String>) {
        self.secrets.extend(name.filter(|name| !name.is_empty()).cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_may_name_an_object_is_walked() {
        let container = |n: &str| {
            serde_json::json!({
                "name": n,
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": format!("{n}-env-map"), "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": format!("{n}-env-secret"), "key": "k"}}},
                    {"name": "C", "value": "plain"},
                ],
                "envFrom": [
                    {"configMapRef": {"name": format!("{n}-from-map")}},
                    {"secretRef": {"name": format!("{n}-from-secret")}},
                ],
            })
        };
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "ns", "name": "p"},
            "spec": {
                "containers": [container("app")],
                "initContainers": [container("init")],
                "ephemeralContainers": [container("debug")],
                "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "vol-map"}},
                    {"name": "b", "secret": {"secretName": "vol-secret"}},
                    {"name": "c", "projected": {"sources": [
                        {"configMap": {"name": "proj-map"}}, {"secret": {"name": "proj-secret"}},
                        {"serviceAccountToken": {"path": "t"}},
                    ]}},
                    {"name": "d", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "csi-secret"}}},
                    {"name": "e", "emptyDir": {}},
                ],
            },
        }))
        .unwrap();
        let mut found = References::default();
        found.add(&pod);
        let names = |set: &BTreeSet<(String, String)>| -> Vec<String> {
            assert!(set.iter().all(|(namespace, _)| namespace == "ns"));
            set.iter().map(|(_, name)| name.clone()).collect()
        };
        assert_eq!(
            names(&found.config_maps),
            [
                "app-env-map",
                "app-from-map",
                "debug-env-map",
                "debug-from-map",
                "init-env-map",
                "init-from-map",
                "proj-map",
                "vol-map"
            ]
        );
        assert_eq!(
            names(&found.secrets),
            [
                "app-env-secret",
                "app-from-secret",
                "csi-secret",
                "debug-env-secret",
                "debug-from-secret",
                "init-env-secret",
                "init-from-secret",
                "proj-secret",
                "pull",
                "vol-secret"
            ]
        );
    }
}
