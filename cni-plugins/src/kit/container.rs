//! The machine's links and the container's.

use orlop_kernel::namespace;
use orlop_kernel::network::{Links, NetworkError};

use crate::Result;
use crate::kit::{Call, CniError};

/// The machine's links.
pub(crate) fn machine() -> Result<Links> {
    Links::open().map_err(|error| CniError::step("the machine's links")(&error))
}

/// Does something with the links of the container.
pub(crate) fn inside<T: Send>(
    call: &Call,
    work: impl FnOnce(&Links) -> std::result::Result<T, NetworkError> + Send,
) -> Result<T> {
    let done = namespace::in_network(&call.netns, || work(&Links::open()?));
    let done = done.map_err(|error| CniError::step("the container's network namespace")(&error))?;
    done.map_err(|error| CniError::step(format!("in the container of {}", call.container_id))(&error))
}
