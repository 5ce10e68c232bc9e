//! The node object: registration, status and lease.
