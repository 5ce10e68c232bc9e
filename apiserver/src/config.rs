//! What the server is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;

/// Configuration of a server; every path is explicit.
#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// Folder of the store.
    pub data_dir: PathBuf,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Where pods reach the API; the `kubernetes` Service shows it.
    pub advertise_address: IpAddr,
    /// Port of [`ApiServerConfig::advertise_address`].
    pub advertise_port: u16,
    /// Certificate of the authority that clients and kubelets are checked against, PEM.
    pub ca_certificate: PathBuf,
    /// Serving certificate, PEM.
    pub serving_certificate: PathBuf,
    /// Key of the serving certificate, PEM.
    pub serving_key: PathBuf,
    /// Certificate shown to kubelets, PEM.
    pub kubelet_client_certificate: PathBuf,
    /// Key of the certificate shown to kubelets, PEM.
    pub kubelet_client_key: PathBuf,
    /// Key that signs service-account tokens, PKCS#8 PEM.
    pub service_account_key: PathBuf,
    /// Issuer of tokens, and the audience of the API itself.
    pub service_account_issuer: String,
    /// Range of the addresses of Services.
    pub service_subnet: ipnetwork::IpNetwork,
    /// Sockets of CSI drivers whose Controller service provisions volumes, by driver name.
    pub csi_sockets: BTreeMap<String, PathBuf>,
    /// Objects that are made at the start if they are missing, with `apiVersion` and `kind`.
    pub first_objects: Vec<serde_json::Value>,
    /// Told once the server answers on every address.
    pub ready: Option<Arc<Notify>>,
}

impl ApiServerConfig {
    /// A configuration with the files of a [`crate::pki::Pki`] folder.
    pub fn new(data_dir: PathBuf, pki: &crate::pki::Pki, advertise: SocketAddr) -> ApiServerConfig {
        let (serving_certificate, serving_key) = pki.api_serving();
        let (kubelet_client_certificate, kubelet_client_key) = pki.client(crate::pki::Client::ApiToKubelet);
        ApiServerConfig {
            data_dir,
            listen: vec![advertise],
            advertise_address: advertise.ip(),
            advertise_port: advertise.port(),
            ca_certificate: pki.ca_certificate(),
            serving_certificate,
            serving_key,
            kubelet_client_certificate,
            kubelet_client_key,
            service_account_key: pki.service_account_keys().0,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            service_subnet: ipnetwork::IpNetwork::V4(
                ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::new(10, 87, 0, 0), 16)
                    .expect("16 is a prefix length"),
            ),
            csi_sockets: BTreeMap::new(),
            first_objects: Vec::new(),
            ready: None,
        }
    }
}
