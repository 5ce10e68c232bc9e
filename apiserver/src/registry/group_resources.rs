//! The rows of the named groups.

use super::core_resources::EVENT_FIELDS;
use super::{ASKED, Resource};

const fn v1(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    schema: &'static str,
) -> Resource {
    Resource { schema, storage: plural, ..Resource::new(group, "v1", plural, singular, kind) }
}

const fn asked(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    schema: &'static str,
) -> Resource {
    Resource { verbs: ASKED, namespaced: false, ..v1(group, plural, singular, kind, schema) }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// The named groups.
pub(super) static GROUPS: &[Resource] = &[
    Resource {
        short_names: &["ev"],
        selectable_fields: EVENT_FIELDS,
        short_lived: true,
        update_creates: true,
        ..v1("events.k8s.io", "events", "event", "Event", "io.k8s.api.events.v1.Event")
    },
    asked(
        AUTHENTICATION,
        "selfsubjectreviews",
        "selfsubjectreview",
        "SelfSubjectReview",
        "io.k8s.api.authentication.v1.SelfSubjectReview",
    ),
    asked(AUTHENTICATION, "tokenreviews", "tokenreview", "TokenReview", "io.k8s.api.authentication.v1.TokenReview"),
    Resource {
        namespaced: true,
        ..asked(
            AUTHORIZATION,
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
            "LocalSubjectAccessReview",
            "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        )
    },
    asked(
        AUTHORIZATION,
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "SelfSubjectAccessReview",
        "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    ),
    asked(
        AUTHORIZATION,
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "SelfSubjectRulesReview",
        "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    ),
    asked(
        AUTHORIZATION,
        "subjectaccessreviews",
        "subjectaccessreview",
        "SubjectAccessReview",
        "io.k8s.api.authorization.v1.SubjectAccessReview",
    ),
    Resource {
        namespaced: false,
        answers_deleted: true,
        ..v1(STORAGE, "csidrivers", "csidriver", "CSIDriver", "io.k8s.api.storage.v1.CSIDriver")
    },
    Resource {
        namespaced: false,
        answers_deleted: true,
        ..v1(STORAGE, "csinodes", "csinode", "CSINode", "io.k8s.api.storage.v1.CSINode")
    },
    Resource {
        short_names: &["sc"],
        namespaced: false,
        answers_deleted: true,
        ..v1(STORAGE, "storageclasses", "storageclass", "StorageClass", "io.k8s.api.storage.v1.StorageClass")
    },
    Resource {
        short_names: &["pc"],
        namespaced: false,
        counts_generation: true,
        ..v1(
            "scheduling.k8s.io",
            "priorityclasses",
            "priorityclass",
            "PriorityClass",
            "io.k8s.api.scheduling.v1.PriorityClass",
        )
    },
    Resource {
        short_lived: true,
        update_creates: true,
        ..v1("coordination.k8s.io", "leases", "lease", "Lease", "io.k8s.api.coordination.v1.Lease")
    },
    Resource {
        namespaced: false,
        ..v1("node.k8s.io", "runtimeclasses", "runtimeclass", "RuntimeClass", "io.k8s.api.node.v1.RuntimeClass")
    },
    Resource {
        counts_generation: true,
        ..v1(
            "discovery.k8s.io",
            "endpointslices",
            "endpointslice",
            "EndpointSlice",
            "io.k8s.api.discovery.v1.EndpointSlice",
        )
    },
];
