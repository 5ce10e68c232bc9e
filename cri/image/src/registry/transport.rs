//! HTTP clients by host: which certificates are trusted, and never a redirect on their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::RegistryError;
use super::config::{RegistriesConfig, is_loopback};

/// Where distributions keep the certificates of public authorities, in the order tried.
const SYSTEM_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Largest certificate file read, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The HTTP clients, made when first used.
pub(super) struct Transport {
    config: Arc<RegistriesConfig>,
    system_roots: OnceLock<RootCertStore>,
    clients: Mutex<HashMap<String, reqwest::Client>>,
}

impl Transport {
    pub(super) fn new(config: Arc<RegistriesConfig>) -> Self {
        Self { config, system_roots: OnceLock::new(), clients: Mutex::new(HashMap::new()) }
    }

    /// The client for a host: one of its own where its trust or its way differs, the common one otherwise.
    pub(super) fn client(&self, authority: &str) -> Result<reqwest::Client, RegistryError> {
        let special = is_loopback(authority) || self.config.host(authority).ca_file.is_some();
        let key = if special { authority } else { "" };
        if let Some(client) = self.lock().get(key) {
            return Ok(client.clone());
        }
        let client = self.build(authority)?;
        self.lock().insert(key.to_owned(), client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, reqwest::Client>> {
        self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn build(&self, authority: &str) -> Result<reqwest::Client, RegistryError> {
        let wrong = |why: String| RegistryError::Configuration { registry: authority.to_owned(), why };
        let mut roots = self.system_roots.get_or_init(read_system_roots).clone();
        if let Some(file) = self.config.host(authority).ca_file {
            let size =
                std::fs::metadata(&file).map_err(|error| wrong(format!("caFile {}: {error}", file.display())))?.len();
            if size > CERTIFICATES_BYTES_MAX {
                return Err(wrong(format!("caFile {} is larger than {CERTIFICATES_BYTES_MAX} bytes", file.display())));
            }
            let before = roots.len();
            for certificate in CertificateDer::pem_file_iter(&file)
                .map_err(|error| wrong(format!("caFile {}: {error}", file.display())))?
            {
                let certificate = certificate.map_err(|error| wrong(format!("caFile {}: {error}", file.display())))?;
                roots.add(certificate).map_err(|error| wrong(format!("caFile {}: {error}", file.display())))?;
            }
            if roots.len() == before {
                return Err(wrong(format!("caFile {} has no certificate in PEM form", file.display())));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(self.config.connect_timeout_seconds))
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(4);
        if is_loopback(authority) {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| wrong(chain(&error)))
    }
}

fn read_system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let override_file = std::env::var("SSL_CERT_FILE").ok();
    for file in override_file.as_deref().into_iter().chain(SYSTEM_CERTIFICATES) {
        if let Ok(certificates) = CertificateDer::pem_file_iter(file) {
            roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            if !roots.is_empty() {
                return roots;
            }
        }
    }
    tracing::warn!(
        "no certificates of public authorities found: install ca-certificates, or only registries with a caFile can be reached by https"
    );
    roots
}

/// An error with all its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
