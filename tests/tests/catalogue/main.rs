//! The catalogue of attacks, each by its number: what is tried, and that nothing comes of it (`docs/security.md`).

mod agent;
mod audit;
mod confinement;
mod kubelet_port;
mod requests;
mod server;
mod sessions;
