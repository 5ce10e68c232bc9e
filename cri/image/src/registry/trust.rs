//! What makes a server believable, and us to it: certificate files, read when a pull begins.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::digest::Hasher;

/// Largest certificate file read, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A file, and the setting that names it: errors have to say both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedFile {
    /// `caFile`, `/etc/…/hosts.toml: ca`.
    pub setting: String,
    pub path: PathBuf,
}

/// Which files to read, and whether to check at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// Authorities beside the system's.
    pub authorities: Vec<NamedFile>,
    /// Our certificates and their keys; without a second file the first holds both.
    pub identities: Vec<(NamedFile, Option<NamedFile>)>,
    /// Believe any certificate.
    pub skip_verify: bool,
}

impl Trust {
    /// Whether anything differs from the ordinary.
    pub(super) fn is_ordinary(&self) -> bool {
        *self == Self::default()
    }

    /// Reads all files.
    pub(super) fn load(&self) -> Result<LoadedTrust, String> {
        let mut loaded = LoadedTrust { skip_verify: self.skip_verify, ..LoadedTrust::default() };
        let mut hasher = Hasher::new();
        for file in &self.authorities {
            let bytes = file.read()?;
            hasher.update(&bytes);
            loaded.authorities.extend(file.certificates(&bytes)?);
        }
        for (certificate, key) in &self.identities {
            let bytes = certificate.read()?;
            let key_file = key.as_ref().unwrap_or(certificate);
            let key_bytes = key_file.read()?;
            hasher.update(&bytes);
            hasher.update(&key_bytes);
            let chain = certificate.certificates(&bytes)?;
            let key = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| {
                key_file.wrong(
                    "it has no private key in PEM form; where the key is a file of its own, name both: [[\"CERT\", \"KEY\"]]",
                )
            })?;
            let provider = rustls::crypto::ring::default_provider();
            let identity = CertifiedKey::from_der(chain, key, &provider)
                .map_err(|error| certificate.wrong(&format!("certificate and key don't fit: {error}")))?;
            loaded.identities.push(Arc::new(identity));
        }
        loaded.mark = hasher.finish().hex();
        Ok(loaded)
    }
}

impl NamedFile {
    fn wrong(&self, why: &str) -> String {
        format!("{} {}: {why}", self.setting, self.path.display())
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        read_bounded(&self.path, CERTIFICATES_BYTES_MAX).map_err(|why| self.wrong(&why))
    }

    fn certificates(&self, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let found = found.map_err(|error| self.wrong(&error.to_string()))?;
        if found.is_empty() {
            return Err(self.wrong("it has no certificate in PEM form"));
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in &found {
            roots.add(certificate.clone()).map_err(|error| self.wrong(&error.to_string()))?;
        }
        Ok(found)
    }
}

/// Reads a file of bounded size; what is wrong otherwise.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes"));
    }
    Ok(bytes)
}

/// The contents of the files.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadedTrust {
    pub authorities: Vec<CertificateDer<'static>>,
    pub identities: Vec<Arc<CertifiedKey>>,
    pub skip_verify: bool,
    /// Changes with the contents.
    pub mark: String,
}

impl LoadedTrust {
    /// What also holds for other servers that this one sends us to: its authorities, nothing else.
    pub(super) fn for_others(&self) -> Self {
        Self { authorities: self.authorities.clone(), mark: format!("others-{}", self.mark), ..Self::default() }
    }

    /// The TLS settings.
    pub(super) fn tls(&self, mut roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
        for certificate in &self.authorities {
            roots.add(certificate.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        } else {
            builder.with_root_certificates(roots)
        };
        if self.identities.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        Ok(builder.with_client_cert_resolver(Arc::new(Identities(self.identities.clone()))))
    }
}

/// Chooses among our certificates: one of an authority that the server names, else the first that can sign for it.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self.0.iter().filter(|identity| identity.key.choose_scheme(schemes).is_some());
        let named = usable.clone().find(|identity| {
            identity.cert.iter().any(|certificate| {
                x509_parser::parse_x509_certificate(certificate)
                    .is_ok_and(|(_, parsed)| authorities.contains(&parsed.issuer().as_raw()))
            })
        });
        named.or_else(|| usable.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes every certificate, for `skip_verify`; the handshake's signatures are still checked.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
