//! What all plugins share: the call, the answer, errors, delegation to IPAM plugins.

mod call;
mod delegate;
mod error;
mod result;

pub(crate) use call::{Call, VERSIONS, carry_out};
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
