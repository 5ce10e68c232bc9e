//! The mount API by file descriptors.
