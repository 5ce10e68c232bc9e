//! The hash that tells whether a container's definition changed under it.

use k8s_openapi::api::core::v1::Container;

/// Hash of what a running container can't take over from a changed definition: name and image (kubelet
/// `HashContainer`), in hex as the annotation has it.
pub fn container_hash(container: &Container) -> String {
    let text = serde_json::json!({ "name": container.name, "image": container.image.as_deref().unwrap_or_default() })
        .to_string();
    format!("{:x}", fnv32a(text.as_bytes()))
}

/// FNV-1a, 32 bits.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// FNV-1a, 128 bits: what uids of static pods are made with.
pub fn fnv128a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"a"), 0xe40c_292c);
        assert_eq!(fnv128a(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
