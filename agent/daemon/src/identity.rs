//! The name and the addresses of the node.

use std::net::IpAddr;

use orlop_agent_node::{detect_addresses, node_name_from_hostname};

use crate::config::AgentConfig;
use crate::serve::AgentError;

/// Who the node is.
pub(crate) struct Identity {
    /// Name of the Node object.
    pub(crate) name: String,
    /// Name of the machine.
    pub(crate) hostname: String,
    /// Addresses, the main one first.
    pub(crate) host_ips: Vec<IpAddr>,
}

impl Identity {
    pub(crate) fn find(config: &AgentConfig) -> Result<Self, AgentError> {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let wanted = if config.node_name.is_empty() { &hostname } else { &config.node_name };
        let name = node_name_from_hostname(wanted).ok_or_else(|| AgentError::Name(wanted.clone()))?;
        let host_ips = detect_addresses(&config.node_ips)?;
        // With a name of its own, the node is known by that name, as with --hostname-override.
        let hostname = if config.node_name.is_empty() { hostname } else { name.clone() };
        Ok(Self { name, hostname, host_ips })
    }
}
