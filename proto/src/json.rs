//! Messages of CRI as JSON, under the names of their fields, as people read them in `crictl inspect`.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// Descriptors of `runtime.v1`, read when somebody first asks.
fn pool() -> Option<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));
    POOL.get_or_init(|| DescriptorPool::decode(bytes).ok()).as_ref()
}

/// A message as JSON: field names as in the `.proto` text, numbers as numbers, fields at their default left out. `name`
/// is the message's own, without package. Null when it can't be shown.
#[must_use]
pub fn to_json(name: &str, message: &impl prost::Message) -> Value {
    let shown = || {
        let descriptor = pool()?.get_message_by_name(&format!("runtime.v1.{name}"))?;
        let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok()?;
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false)
            .use_enum_numbers(true)
            .skip_default_fields(true);
        dynamic.serialize_with_options(serde_json::value::Serializer, &options).ok()
    };
    shown().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cri;

    #[test]
    fn fields_have_their_own_names() {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 2 }),
            log_path: "c.log".into(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources { memory_limit_in_bytes: 1 << 40, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let expected = json!({
            "metadata": {"name": "c", "attempt": 2},
            "log_path": "c.log",
            "linux": {"resources": {"memory_limit_in_bytes": 1_099_511_627_776_i64}},
        });
        assert_eq!(to_json("ContainerConfig", &config), expected);
        assert_eq!(to_json("NoSuchMessage", &config), Value::Null);
    }
}
