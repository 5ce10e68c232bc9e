//! The rows of the core group.

use super::{NameRule, PART, Resource, STORED_SINGLY, Subresource, part};

const fn core(plural: &'static str, singular: &'static str, kind: &'static str, schema: &'static str) -> Resource {
    Resource { schema, ..Resource::new("", "v1", plural, singular, kind) }
}

const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const POD_PARTS: &[Subresource] = &[
    part("attach", "PodAttachOptions", CONNECT),
    part("binding", "Binding", &["create"]),
    part("ephemeralcontainers", "Pod", PART),
    Subresource { name: "eviction", kind: "Eviction", group: Some("policy"), version: Some("v1"), verbs: &["create"] },
    part("exec", "PodExecOptions", CONNECT),
    part("log", "Pod", &["get"]),
    part("portforward", "PodPortForwardOptions", CONNECT),
    part("resize", "Pod", PART),
    part("status", "Pod", PART),
];

pub(super) const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "/involvedObject/name"),
    ("involvedObject.uid", "/involvedObject/uid"),
    ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
    ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
    ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
    ("regarding.kind", "/involvedObject/kind"),
    ("regarding.namespace", "/involvedObject/namespace"),
    ("regarding.name", "/involvedObject/name"),
    ("regarding.uid", "/involvedObject/uid"),
    ("reason", "/reason"),
    ("reportingComponent", "/reportingComponent"),
    ("reportingController", "/reportingComponent"),
    ("source", "/source/component"),
    ("type", "/type"),
];

/// The core group.
pub(super) static CORE: &[Resource] = &[
    Resource { short_names: &["cm"], ..core("configmaps", "configmap", "ConfigMap", "io.k8s.api.core.v1.ConfigMap") },
    Resource { short_names: &["ep"], ..core("endpoints", "endpoints", "Endpoints", "io.k8s.api.core.v1.Endpoints") },
    Resource {
        short_names: &["ev"],
        selectable_fields: EVENT_FIELDS,
        short_lived: true,
        update_creates: true,
        ..core("events", "event", "Event", "io.k8s.api.core.v1.Event")
    },
    Resource {
        short_names: &["ns"],
        namespaced: false,
        verbs: STORED_SINGLY,
        subresources: &[part("finalize", "Namespace", &["update"]), part("status", "Namespace", PART)],
        selectable_fields: &[("status.phase", "/status/phase")],
        name_rule: NameRule::Label,
        ..core("namespaces", "namespace", "Namespace", "io.k8s.api.core.v1.Namespace")
    },
    Resource {
        short_names: &["no"],
        namespaced: false,
        subresources: &[part("proxy", "NodeProxyOptions", PROXY), part("status", "Node", PART)],
        selectable_fields: &[("spec.unschedulable", "/spec/unschedulable")],
        ..core("nodes", "node", "Node", "io.k8s.api.core.v1.Node")
    },
    Resource {
        short_names: &["pvc"],
        subresources: &[part("status", "PersistentVolumeClaim", PART)],
        answers_deleted: true,
        ..core(
            "persistentvolumeclaims",
            "persistentvolumeclaim",
            "PersistentVolumeClaim",
            "io.k8s.api.core.v1.PersistentVolumeClaim",
        )
    },
    Resource {
        short_names: &["pv"],
        namespaced: false,
        subresources: &[part("status", "PersistentVolume", PART)],
        answers_deleted: true,
        ..core("persistentvolumes", "persistentvolume", "PersistentVolume", "io.k8s.api.core.v1.PersistentVolume")
    },
    Resource {
        short_names: &["po"],
        categories: &["all"],
        subresources: POD_PARTS,
        selectable_fields: &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("spec.hostNetwork", "/spec/hostNetwork"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
            ("status.podIPs", "/status/podIPs/0/ip"),
            ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ],
        answers_deleted: true,
        counts_generation: true,
        ..core("pods", "pod", "Pod", "io.k8s.api.core.v1.Pod")
    },
    Resource {
        answers_deleted: true,
        counts_generation: true,
        ..core("podtemplates", "podtemplate", "PodTemplate", "io.k8s.api.core.v1.PodTemplate")
    },
    Resource {
        selectable_fields: &[("type", "/type")],
        ..core("secrets", "secret", "Secret", "io.k8s.api.core.v1.Secret")
    },
    Resource {
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            group: Some("authentication.k8s.io"),
            version: Some("v1"),
            verbs: &["create"],
        }],
        answers_deleted: true,
        ..core("serviceaccounts", "serviceaccount", "ServiceAccount", "io.k8s.api.core.v1.ServiceAccount")
    },
    Resource {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[part("status", "Service", PART)],
        selectable_fields: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        answers_deleted: true,
        name_rule: NameRule::Label,
        ..core("services", "service", "Service", "io.k8s.api.core.v1.Service")
    },
];
