//! Labels that a node may give itself.

use std::collections::BTreeMap;

/// Labels below kubernetes.io and k8s.io that a kubelet may set on its own node (k8s.io/kubelet pkg/apis).
const KNOWN: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/windows-build",
];
/// Domains whose labels a kubelet may set, with all domains below them.
const KNOWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// A label can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// Not `key=value`.
    #[error("node label {0:?}: write it as key=value")]
    Form(String),
    /// The API server would refuse it.
    #[error("node label {key}={value}: {why}")]
    Invalid {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A node must not give itself this label.
    #[error(
        "node label {0}: labels of kubernetes.io and k8s.io are reserved; use another domain, or node.kubernetes.io/"
    )]
    Reserved(String),
}

/// Reads `a=b,c=d` (`--node-labels`).
///
/// # Errors
/// [`LabelError`] naming the label and the rule.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| LabelError::Form(part.to_owned()))?;
        let invalid = |why| LabelError::Invalid { key: key.to_owned(), value: value.to_owned(), why };
        let (domain, name) = key.rsplit_once('/').unwrap_or(("", key));
        if !is_value(name) || name.is_empty() {
            return Err(invalid(
                "the key's name must be 1 to 63 letters, digits, -, _ or ., with a letter or digit at both ends",
            ));
        }
        if domain.len() > 253 || domain.contains('/') {
            return Err(invalid("the key's domain must be a DNS name of at most 253 characters"));
        }
        if !is_value(value) {
            return Err(invalid(
                "the value must be at most 63 letters, digits, -, _ or ., with a letter or digit at both ends",
            ));
        }
        let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|d| d.ends_with('.'));
        let reserved = below("kubernetes.io") || below("k8s.io");
        if reserved && !KNOWN.contains(&key) && !KNOWN_DOMAINS.iter().any(|domain| below(domain)) {
            return Err(LabelError::Reserved(key.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

fn is_value(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && edge(bytes.first())
        && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_reserved_ones_refused() {
        let labels = parse_labels("a=b, example.com/x=1,node.kubernetes.io/y=,topology.kubernetes.io/zone=z").unwrap();
        assert_eq!(labels.len(), 4);
        assert!(parse_labels("").unwrap().is_empty());
        for wrong in [
            "a",
            "a=b c",
            "=b",
            "kubernetes.io/x=1",
            "node-role.kubernetes.io/worker=",
            "x.k8s.io/y=1",
            "a=-b",
            "a/b/c=d",
        ] {
            assert!(parse_labels(wrong).is_err(), "{wrong}");
        }
    }
}
