//! Names and taints of the node, checked as the API server would.

use k8s_openapi::api::core::v1::Taint;

/// Longest name of a node (DNS subdomain).
const NAME_MAX: usize = 253;

/// The node's name from the machine's host name: lower case, as the kubelet does. None where nothing of a valid name
/// (RFC 1123 subdomain) is left.
pub fn node_name_from_hostname(hostname: &str) -> Option<String> {
    let name = hostname.trim().to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (!name.is_empty() && name.len() <= NAME_MAX && name.split('.').all(label)).then_some(name)
}

/// A taint that the node registers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTaint {
    /// Key.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A taint is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("taint {text:?}: write it as key=value:effect, effect one of NoSchedule, PreferNoSchedule, NoExecute")]
pub struct TaintError {
    text: String,
}

impl NodeTaint {
    /// Reads `key=value:effect` or `key:effect` (`--register-with-taints`).
    ///
    /// # Errors
    /// [`TaintError`] naming the text.
    pub fn parse(text: &str) -> Result<Self, TaintError> {
        let error = || TaintError { text: text.to_owned() };
        let (head, effect) = text.trim().rsplit_once(':').ok_or_else(error)?;
        let (key, value) = head.split_once('=').unwrap_or((head, ""));
        if key.is_empty() || !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err(error());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
    }
}

impl From<&NodeTaint> for Taint {
    fn from(taint: &NodeTaint) -> Self {
        Self {
            key: taint.key.clone(),
            value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
            effect: taint.effect.clone(),
            time_added: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_taints_are_checked() {
        for (host, want) in [("Node-1", Some("node-1")), ("a.b", Some("a.b")), ("a_b", None), ("", None), ("-a", None)]
        {
            assert_eq!(node_name_from_hostname(host).as_deref(), want, "{host:?}");
        }
        let taint = NodeTaint::parse("k=v:NoSchedule").unwrap();
        assert_eq!((taint.key.as_str(), taint.value.as_str(), taint.effect.as_str()), ("k", "v", "NoSchedule"));
        assert_eq!(NodeTaint::parse("k:NoExecute").unwrap().value, "");
        for wrong in ["k", "k=v", "k=v:Never", ":NoSchedule"] {
            assert!(NodeTaint::parse(wrong).unwrap_err().to_string().contains(wrong));
        }
    }
}
