//! What all plugins share: the call, the answer, errors, the way into the container, delegation to IPAM plugins.

mod call;
mod change;
mod container;
mod delegate;
mod error;
mod result;
pub(crate) mod wrong_field;

pub(crate) use call::{Call, VERSIONS, carry_out, is_ifname};
pub(crate) use change::{change, closing_is_left, leave_closing};
pub(crate) use container::{inside, machine};
pub(crate) use delegate::{delegate, delegate_add};
pub(crate) use error::{CniError, Code};
pub(crate) use result::{Address, CniResult, Interface, Route};

use crate::Result;

/// A plugin.
pub(crate) trait Plugin: Sync {
    /// Attaches a container.
    fn add(&self, call: &Call) -> Result<CniResult>;
    /// Detaches it; fine when it is detached already.
    fn del(&self, call: &Call) -> Result<()>;
    /// Compares what is there with the previous result.
    fn check(&self, call: &Call) -> Result<()>;
    /// Removes what belongs to no valid attachment.
    fn gc(&self, _call: &Call) -> Result<()> {
        Ok(())
    }
    /// Whether ADD could work.
    fn status(&self, _call: &Call) -> Result<()> {
        Ok(())
    }
}

/// The first digits of a text's SHA-512, as upstream's plugins name things.
pub(crate) fn hash(text: &str, digits: usize) -> String {
    use sha2::{Digest, Sha512};
    let mut digest = hex::encode(Sha512::digest(text.as_bytes()));
    digest.truncate(digits);
    digest
}

/// An attachment that GC keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// Begins every mark of a network's attachments.
pub(crate) fn network_mark(network: &str) -> String {
    format!("{}-", hash(network, 16))
}

/// How the rules of an attachment are known.
pub(crate) fn attachment_mark(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}{}", network_mark(network), hash(&format!("{ifname}:{container_id}"), 16))
}

/// Whether a mark is that of an attachment of a network that is not valid any more.
pub(crate) fn is_stale(mark: &str, network: &str, valid: &[Attachment]) -> bool {
    let keeps = |one: &Attachment| mark.starts_with(&attachment_mark(network, &one.ifname, &one.container_id));
    mark.starts_with(&network_mark(network)) && !valid.iter().any(keeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_marks_are_those_of_the_network_that_nobody_keeps() {
        let attachment = |id: &str| Attachment { container_id: id.into(), ifname: "eth0".into() };
        let mark = |network: &str, id: &str| format!("{}, more words", attachment_mark(network, "eth0", id));
        let valid = [attachment("a")];
        for (mark, stale) in [
            (mark("net", "a"), false),
            (mark("net", "b"), true),
            (mark("other", "b"), false),
            (String::new(), false),
            ("somebody's own comment".into(), false),
        ] {
            assert_eq!(is_stale(&mark, "net", &valid), stale, "{mark}");
        }
        assert!(is_stale(&mark("net", "a"), "net", &[]));
    }
}
