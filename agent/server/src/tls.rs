//! TLS of the kubelet port: the server's certificate, given or made here, and the CA of clients; both are read again
//! when their files change.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use orlop_agent_core::ports::User;
use orlop_kernel::file::{self, Outlives};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A self-signed certificate lives a year (kubelet's default).
const SELF_SIGNED_DAYS: i64 = 365;
/// It is made anew when it would end within this many seconds.
const RENEW_SECONDS: i64 = 30 * 24 * 3600;

/// Where the server's certificate comes from.
#[derive(Clone, Debug)]
pub enum ServerIdentity {
    /// Files in PEM (`tlsCertFile`, `tlsPrivateKeyFile`).
    Files {
        /// Certificate, with intermediate ones after it.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Made here and kept as `kubelet.crt` and `kubelet.key`.
    SelfSigned {
        /// Directory of the two files.
        folder: PathBuf,
        /// Names that it is for, the node's first.
        names: Vec<String>,
        /// Addresses that it is for.
        addresses: Vec<IpAddr>,
    },
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No certificate can be made.
    #[error("making a self-signed certificate for the kubelet port: {0}")]
    Make(#[source] rcgen::Error),
}

/// What TLS is made of.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) identity: ServerIdentity,
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The server's side of TLS, from the files as they are now. Without a client CA no certificates are asked for.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = match &self.identity {
            ServerIdentity::Files { certificate, key } => (certificate.clone(), key.clone()),
            ServerIdentity::SelfSigned { folder, names, addresses } => self_signed(folder, names, addresses)?,
        };
        let content = |path: &Path, why: String| TlsError::Content { path: path.to_owned(), why };
        let chain = certificates(&certificate)?;
        let secret =
            PrivateKeyDer::from_pem_file(&key).map_err(|error| content(&key, format!("no private key: {error}")))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| content(&certificate, error.to_string()))?;
        let builder = match &self.client_ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| content(path, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| content(path, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, secret)
            .map_err(|error| content(&certificate, format!("does not fit the key {}: {error}", key.display())))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// When the files were last written; a change means that they are to be loaded again.
    pub(crate) fn stamps(&self) -> Vec<Option<SystemTime>> {
        let mut paths: Vec<&Path> = self.client_ca.iter().map(PathBuf::as_path).collect();
        if let ServerIdentity::Files { certificate, key } = &self.identity {
            paths.extend([certificate.as_path(), key.as_path()]);
        }
        paths.into_iter().map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: String| TlsError::Content { path: path.to_owned(), why };
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| content(format!("no PEM certificates: {error}")))?;
    if list.is_empty() { Err(content("holds no certificate".to_owned())) } else { Ok(list) }
}

/// The files of the self-signed certificate, made where they are missing, broken or about to end.
fn self_signed(folder: &Path, names: &[String], addresses: &[IpAddr]) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (folder.join("kubelet.crt"), folder.join("kubelet.key"));
    if is_usable(&certificate, addresses) && key.exists() {
        return Ok((certificate, key));
    }
    std::fs::create_dir_all(folder).map_err(|source| TlsError::File { path: folder.to_owned(), source })?;
    let secret = KeyPair::generate().map_err(TlsError::Make)?;
    let mut sans: Vec<String> = names.to_vec();
    sans.extend(addresses.iter().map(ToString::to_string));
    let mut params = CertificateParams::new(sans).map_err(TlsError::Make)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("kubelet", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    params.not_before = (now - day).into();
    params.not_after = (now + day * SELF_SIGNED_DAYS as u32).into();
    let made = params.self_signed(&secret).map_err(TlsError::Make)?;
    // The key first: a certificate without its key would be taken for usable.
    write_private(&key, &secret.serialize_pem())?;
    write_private(&certificate, &made.pem())?;
    Ok((certificate, key))
}

fn is_usable(certificate: &Path, addresses: &[IpAddr]) -> bool {
    let Ok(chain) = certificates(certificate) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&chain[0]) else { return false };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let named = |address: &IpAddr| {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let sans = parsed.subject_alternative_name().ok().flatten();
        sans.is_some_and(|sans| {
            sans.value.general_names.iter().any(
                |name| matches!(name, x509_parser::extensions::GeneralName::IPAddress(found) if *found == bytes.as_slice()),
            )
        })
    };
    parsed.validity().not_after.timestamp() > now + RENEW_SECONDS && addresses.iter().all(named)
}

/// Writes a file that only root reads.
fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    file::replace(path, text.as_bytes(), 0o600, Outlives::Power).map_err(failed)
}

/// The user of a client certificate: CN is the name, each O a group. The certificate was verified by TLS.
pub(crate) fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = parsed.subject().iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned));
    Some(User { name, uid: String::new(), groups: groups.chain(["system:authenticated".to_owned()]).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> TlsFiles {
        let identity = ServerIdentity::SelfSigned {
            folder: folder.to_owned(),
            names: vec!["node-1".into()],
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        TlsFiles { identity, client_ca: None }
    }

    #[test]
    fn a_certificate_is_made_once_and_anew_when_broken_or_for_another_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubelet.crt");
        let read = || std::fs::read_to_string(&path).unwrap();
        files(folder.path()).load().unwrap();
        let first = read();
        files(folder.path()).load().unwrap();
        assert_eq!(read(), first, "kept over a restart");
        let mut moved = files(folder.path());
        if let ServerIdentity::SelfSigned { addresses, .. } = &mut moved.identity {
            addresses.push("10.0.0.2".parse().unwrap());
        }
        moved.load().unwrap();
        assert_ne!(read(), first, "the node has a new address");
        std::fs::write(&path, "garbage").unwrap();
        files(folder.path()).load().unwrap();
        assert!(read().contains("BEGIN CERTIFICATE"));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join("kubelet.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        let files = TlsFiles {
            identity: ServerIdentity::Files { certificate: certificate.clone(), key: key.clone() },
            client_ca: None,
        };
        assert!(files.load().unwrap_err().to_string().contains("a.crt"), "missing");
        std::fs::write(&certificate, "x").unwrap();
        assert!(files.load().unwrap_err().to_string().contains("holds no certificate"));
    }

    #[test]
    fn users_come_from_certificates() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(DnType::OrganizationName, "kubeadm:cluster-admins");
        let certificate = params.self_signed(&key).unwrap();
        let user = certificate_user(certificate.der()).unwrap();
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
        assert!(certificate_user(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
