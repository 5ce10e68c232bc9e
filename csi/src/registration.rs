//! The registration service: tells the agent or kubelet where the driver is.

use orlop_proto::registration::registration_server::Registration;
use orlop_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tonic::{Request, Response, Status};

/// The registration service.
#[derive(Clone, Debug)]
pub(crate) struct RegistrationService {
    /// Name of the driver.
    pub(crate) driver_name: String,
    /// Path of its socket.
    pub(crate) endpoint: String,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver_name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.driver_name, "the driver is registered");
        } else {
            tracing::error!(
                driver = self.driver_name,
                error = status.error,
                "the driver could not be registered; it is tried again"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
