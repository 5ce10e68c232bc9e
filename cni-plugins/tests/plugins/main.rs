//! The plugins on the real kernel, beside upstream's: each test has a machine of its own made of network namespaces.

mod bridge;
mod bridge_faults;
mod caller;
mod crowd;
mod host_local;
mod loopback;
mod machine;
mod portmap;
mod protocol;
