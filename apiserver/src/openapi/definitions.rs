//! The schemas of the kinds that are served, as the Kubernetes types give them.

use std::sync::LazyLock;

use k8s_openapi::api;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// Prefix of a reference to a definition.
pub(super) const REFERENCE_PREFIX: &str = "#/components/schemas/";

static DEFINITIONS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let mut definitions = generate();
    definitions.values_mut().for_each(strip);
    definitions
});

/// Every definition, by its OpenAPI name; without descriptions, which only readers of the pages want.
pub fn definitions() -> &'static Map<String, Value> {
    &DEFINITIONS
}

/// Takes the descriptions out of a schema.
fn strip(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    // A field may be called so too.
    if map.get("description").is_some_and(Value::is_string) {
        map.remove("description");
    }
    for (key, inner) in map.iter_mut() {
        match inner {
            Value::Object(properties) if key == "properties" => properties.values_mut().for_each(strip),
            Value::Object(_) => strip(inner),
            _ => {}
        }
    }
}

/// The name of the definition that a schema refers to.
pub fn referred(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(REFERENCE_PREFIX)
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The definitions as the types give them, with their descriptions; made anew at each call.
pub(super) fn generate() -> Map<String, Value> {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    let g = &mut generator;
    add::<api::core::v1::Binding>(g);
    add::<api::core::v1::ConfigMap>(g);
    add::<api::core::v1::Endpoints>(g);
    add::<api::core::v1::Event>(g);
    add::<api::core::v1::Namespace>(g);
    add::<api::core::v1::Node>(g);
    add::<api::core::v1::PersistentVolume>(g);
    add::<api::core::v1::PersistentVolumeClaim>(g);
    add::<api::core::v1::Pod>(g);
    add::<api::core::v1::PodTemplate>(g);
    add::<api::core::v1::Secret>(g);
    add::<api::core::v1::Service>(g);
    add::<api::core::v1::ServiceAccount>(g);
    add::<api::authentication::v1::SelfSubjectReview>(g);
    add::<api::authentication::v1::TokenRequest>(g);
    add::<api::authentication::v1::TokenReview>(g);
    add::<api::authorization::v1::LocalSubjectAccessReview>(g);
    add::<api::authorization::v1::SelfSubjectAccessReview>(g);
    add::<api::authorization::v1::SelfSubjectRulesReview>(g);
    add::<api::authorization::v1::SubjectAccessReview>(g);
    add::<api::coordination::v1::Lease>(g);
    add::<api::discovery::v1::EndpointSlice>(g);
    add::<api::events::v1::Event>(g);
    add::<api::node::v1::RuntimeClass>(g);
    add::<api::policy::v1::Eviction>(g);
    add::<api::scheduling::v1::PriorityClass>(g);
    add::<api::storage::v1::CSIDriver>(g);
    add::<api::storage::v1::CSINode>(g);
    add::<api::storage::v1::StorageClass>(g);
    add::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(g);
    add::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>(g);
    std::mem::take(generator.definitions_mut())
}
