//! The agent's terms said in CRI.

mod container;
mod resources;
mod sandbox;
mod security;

pub(crate) use container::container_config;
pub(crate) use sandbox::sandbox_config;

use orlop_agent_core::images::RegistryAuth;
use orlop_proto::cri;

/// Credentials for a pull.
pub(crate) fn auth_config(auth: &RegistryAuth) -> cri::AuthConfig {
    cri::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: String::new(),
        server_address: auth.server.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}
