//! HTTP clients by what they trust, and never a redirect on their own.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use reqwest::Url;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::config::is_loopback;
use super::trust::LoadedTrust;

/// Where distributions keep the certificates of public authorities, in the order tried.
const SYSTEM_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Most clients kept. Certificates that change leave old ones behind.
const CLIENTS_MAX: usize = 64;

/// What makes two clients the same: way, contents of the certificate files, patience, proxy.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    is_loopback: bool,
    skip_verify: bool,
    mark: String,
    connect_timeout: Duration,
    proxy: Option<Url>,
}

/// The HTTP clients, made when first used.
#[derive(Default)]
pub(super) struct Transport {
    system_roots: OnceLock<RootCertStore>,
    clients: Mutex<HashMap<Key, reqwest::Client>>,
}

impl Transport {
    /// The client for a server.
    pub(super) fn client(
        &self,
        authority: &str,
        trust: &LoadedTrust,
        connect_timeout: Duration,
        proxy: Option<&Url>,
    ) -> Result<reqwest::Client, String> {
        let key = Key {
            is_loopback: is_loopback(authority),
            skip_verify: trust.skip_verify,
            mark: trust.mark.clone(),
            connect_timeout,
            proxy: proxy.cloned(),
        };
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = self.build(&key, trust)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, key: &Key, trust: &LoadedTrust) -> Result<reqwest::Client, String> {
        let roots = self.system_roots.get_or_init(read_system_roots).clone();
        let tls = trust.tls(roots).map_err(|error| error.to_string())?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(key.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(4);
        if let Some(proxy) = &key.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(|error| chain(&error))?);
        } else if key.is_loopback {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| chain(&error))
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
        "no certificates of public authorities found: install ca-certificates, or only registries with an authority of their own (ca) can be reached by https"
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
