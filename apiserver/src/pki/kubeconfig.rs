//! Kubeconfig files: how a client reaches the API and who it is.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::PkiError;
use super::file::{self, Access};

/// What a client shows to the API.
#[derive(Clone, Debug)]
pub enum KubeconfigCredential {
    /// Certificate and key inside the file.
    Embedded {
        /// The certificate, PEM.
        certificate_pem: Vec<u8>,
        /// The key, PEM.
        key_pem: Vec<u8>,
    },
    /// Certificate and key in files of their own, which may be renewed.
    Files {
        /// The certificate's path.
        certificate: PathBuf,
        /// The key's path.
        key: PathBuf,
    },
    /// A bearer token.
    Token(String),
}

/// One cluster, one user, one context.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// The cluster's name.
    pub cluster: String,
    /// The user's name.
    pub user: String,
    /// Certificates of the authority, PEM.
    pub ca_pem: Vec<u8>,
    /// Who the client is.
    pub credential: KubeconfigCredential,
}

impl Kubeconfig {
    /// The document.
    pub fn document(&self) -> Value {
        let user = match &self.credential {
            KubeconfigCredential::Embedded { certificate_pem, key_pem } => json!({
                "client-certificate-data": STANDARD.encode(certificate_pem),
                "client-key-data": STANDARD.encode(key_pem),
            }),
            KubeconfigCredential::Files { certificate, key } => {
                json!({"client-certificate": certificate, "client-key": key})
            }
            KubeconfigCredential::Token(token) => json!({"token": token}),
        };
        let context = format!("{}@{}", self.user, self.cluster);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": self.cluster,
                "cluster": {"server": self.server, "certificate-authority-data": STANDARD.encode(&self.ca_pem)},
            }],
            "users": [{"name": self.user, "user": user}],
            "contexts": [{"name": context, "context": {"cluster": self.cluster, "user": self.user, "namespace": "default"}}],
            "current-context": context,
        })
    }

    /// Writes the file with mode 0600, if it is not there with the same content.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), PkiError> {
        // JSON is YAML, and every reader of kubeconfigs takes it.
        let mut text = serde_json::to_string_pretty(&self.document()).unwrap_or_default();
        text.push('\n');
        if let Some(folder) = path.parent() {
            file::make_private_folder(folder)?;
        }
        if file::read_if_there(path)?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        file::write(path, text.as_bytes(), Access::Private)
    }
}
