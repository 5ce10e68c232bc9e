//! Kinds of volumes that are folders of the node.

pub(crate) mod empty_dir;
pub(crate) mod host_path;
pub(crate) mod local;
