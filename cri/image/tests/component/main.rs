//! Images against a real registry, a registry that misbehaves, and hostile layers, on a real file system. Needs root and
//! the Debian packages docker-registry, skopeo, umoci, busybox-static and apache2-utils.

mod admin;
mod archives;
mod artifacts;
mod crash;
mod credentials;
mod faults;
mod hostile;
mod identity;
mod mirrors;
mod real_registry;
mod scripted;
mod store;
mod support;
mod verifiers;
