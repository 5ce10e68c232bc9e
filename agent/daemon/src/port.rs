//! The kubelet port, from the kubelet's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use orlop_agent_core::ports::{Access, NodeView};
use orlop_agent_server::{Authorization, KubeletServer, KubeletServerConfig, KubeletServerPorts, ServerIdentity};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::serve::{AgentError, Parts};
use crate::supervise::supervise;

impl Parts {
    /// The kubelet port. A port that can't be had at the start is an error; later it is tried again.
    pub(crate) async fn start_server(
        &self,
        tasks: &mut JoinSet<()>,
        view: Arc<dyn NodeView>,
        cancel: &CancellationToken,
    ) -> Result<(), AgentError> {
        if !self.config.kubelet.enable_server {
            return Ok(());
        }
        let config = self.server_config();
        let webhook = self.config.kubelet.authentication.webhook.enabled;
        let access = self.api.as_ref().filter(|_| webhook).map(|api| api.access.clone() as Arc<dyn Access>);
        let ports = KubeletServerPorts { view, access };
        let mut bound = Some(KubeletServer::bind(config.clone(), ports.clone()).await?);
        info!(address = %config.listen, "the kubelet port is open");
        let token = cancel.clone();
        tasks.spawn(supervise("kubelet port", cancel.clone(), move || {
            let (bound, config, ports, token) = (bound.take(), config.clone(), ports.clone(), token.clone());
            async move {
                let server = match bound {
                    Some(server) => server,
                    None => KubeletServer::bind(config, ports).await.map_err(|error| error.to_string())?,
                };
                server.serve(token).await;
                Ok(())
            }
        }));
        Ok(())
    }

    fn server_config(&self) -> KubeletServerConfig {
        let kubelet = &self.config.kubelet;
        let given = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        let identity = match (given(&kubelet.tls_cert_file), given(&kubelet.tls_private_key_file)) {
            (Some(certificate), Some(key)) => ServerIdentity::Files { certificate, key },
            _ => ServerIdentity::SelfSigned {
                folder: self.config.cert_dir.clone(),
                names: vec![self.identity.name.clone(), self.identity.hostname.clone()],
                addresses: self.identity.host_ips.clone(),
            },
        };
        let healthz = SocketAddr::new(kubelet.healthz_bind_address, kubelet.healthz_port);
        KubeletServerConfig {
            listen: SocketAddr::new(kubelet.address, kubelet.port),
            healthz: (kubelet.healthz_port != 0).then_some(healthz),
            identity,
            client_ca: given(&kubelet.authentication.x509.client_ca_file),
            anonymous: kubelet.authentication.anonymous.enabled,
            authorization: match kubelet.authorization.mode.as_str() {
                "AlwaysAllow" => Authorization::AlwaysAllow,
                _ => Authorization::Webhook,
            },
            debugging_handlers: kubelet.enable_debugging_handlers,
            idle_timeout: kubelet.streaming_connection_idle_timeout.0,
            node_name: self.identity.name.clone(),
            config: serde_json::to_value(kubelet).unwrap_or_default(),
        }
    }
}
