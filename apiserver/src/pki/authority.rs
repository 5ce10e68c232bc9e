//! A certificate authority on disk, the leaves it issues and the key that signs tokens.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;
use super::file::{self, Access};

/// Life of an authority, in days.
const AUTHORITY_DAYS: i64 = 3650;
/// Life of a leaf, in days (kubeadm: one year).
const LEAF_DAYS: i64 = 365;
/// A certificate that ends within so many days is renewed.
const RENEW_DAYS: i64 = 30;

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS server authentication.
    Server,
    /// TLS client authentication.
    Client,
}

/// What goes into a leaf certificate.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Common name of the subject.
    pub common_name: String,
    /// Organisation of the subject: a group to Kubernetes.
    pub organization: Option<String>,
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    /// What it may be used for.
    pub usage: Usage,
}

impl Profile {
    /// A serving certificate for the names.
    pub fn server(common_name: &str, names: Vec<String>) -> Profile {
        Profile { common_name: common_name.into(), organization: None, names, usage: Usage::Server }
    }

    /// A client certificate.
    pub fn client(common_name: &str, organization: Option<&str>) -> Profile {
        Profile {
            common_name: common_name.into(),
            organization: organization.map(String::from),
            names: Vec::new(),
            usage: Usage::Client,
        }
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        set_lifetime(&mut params, LEAF_DAYS);
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = &self.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match self.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let unique: BTreeSet<&String> = self.names.iter().collect();
        for name in unique {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        Ok(params)
    }
}

/// A certificate authority and where its leaves lie.
pub struct Authority {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority `<stem>.crt`, `<stem>.key`, or makes it.
    ///
    /// # Errors
    /// When the files can't be read or written, or are damaged.
    pub fn ensure(dir: &Path, stem: &str, common_name: &str) -> Result<Authority, PkiError> {
        let (certificate_path, key_path) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        let issue = |source| PkiError::Issue { name: stem.to_string(), source };
        if file::read_if_there(&certificate_path)?.is_none() {
            let key = ensure_key(&key_path)?;
            let mut params = CertificateParams::default();
            set_lifetime(&mut params, AUTHORITY_DAYS);
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key).map_err(issue)?;
            file::write(&certificate_path, certificate.pem().as_bytes(), Access::Public)?;
        }
        let pem = file::read(&certificate_path)?;
        let damaged = |path: &Path, reason: String| PkiError::Damaged { path: path.to_path_buf(), reason };
        let certificate =
            CertificateDer::from_pem_slice(&pem).map_err(|error| damaged(&certificate_path, error.to_string()))?;
        if file::read_if_there(&key_path)?.is_none() {
            return Err(damaged(&key_path, "it is missing beside its certificate".into()));
        }
        let key = ensure_key(&key_path)?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| damaged(&certificate_path, error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged(&key_path, "it does not belong to the certificate beside it".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(issue)?;
        Ok(Authority { dir: dir.to_path_buf(), certificate, issuer })
    }

    /// Makes or renews `<stem>.crt` and `<stem>.key`; the key is kept over renewals.
    ///
    /// # Errors
    /// When a file can't be read or written, the key is damaged, or a name is no DNS name.
    pub fn ensure_leaf(&self, stem: &str, profile: &Profile) -> Result<(), PkiError> {
        let (certificate_path, key_path) = (self.dir.join(format!("{stem}.crt")), self.dir.join(format!("{stem}.key")));
        let issue = |source| PkiError::Issue { name: stem.to_string(), source };
        let key = ensure_key(&key_path)?;
        let params = profile.params().map_err(issue)?;
        if let Some(pem) = file::read_if_there(&certificate_path)?
            && self.still_good(&pem, profile, &key)
        {
            return Ok(());
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        file::write(&certificate_path, certificate.pem().as_bytes(), Access::Public)
    }

    /// Signs a certificate request (PEM) for so many days, with the usages and names that the request asks for.
    ///
    /// # Errors
    /// When the request can't be read or signed.
    pub fn sign_request(
        &self,
        request_pem: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
        days: i64,
    ) -> Result<String, PkiError> {
        let issue = |source| PkiError::Issue { name: "of a request".into(), source };
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).map_err(issue)?;
        set_lifetime(&mut request.params, days);
        request.params.is_ca = IsCa::NoCa;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = usages;
        request.params.use_authority_key_identifier_extension = true;
        Ok(request.signed_by(&self.issuer).map_err(issue)?.pem())
    }

    /// True when the certificate is of this authority and key, names the same, and lasts.
    fn still_good(&self, pem: &[u8], profile: &Profile, key: &KeyPair) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pem) else { return false };
        let Ok((_, leaf)) = X509Certificate::from_der(&der) else { return false };
        let Ok((_, authority)) = X509Certificate::from_der(&self.certificate) else { return false };
        let lasts = leaf.validity().not_after.timestamp() - Timestamp::now().as_second() > RENEW_DAYS * 86_400;
        lasts
            && leaf.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && issuer_key_id(&leaf).is_some_and(|id| Some(id) == subject_key_id(&authority))
            && leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok())
                == Some(&profile.common_name)
            && leaf.subject().iter_organization().next().and_then(|name| name.as_str().ok())
                == profile.organization.as_deref()
            && alternative_names(&leaf) == profile.names.iter().cloned().collect()
    }
}

fn issuer_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn alternative_names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_string()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|v4| IpAddr::from(v4).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Begins yesterday, so that a clock that is a little behind does not refuse it.
fn set_lifetime(params: &mut CertificateParams, days: i64) {
    let day = |offset: i64| {
        let at = Timestamp::from_second(Timestamp::now().as_second() + offset * 86_400).unwrap_or(Timestamp::MAX);
        let date = at.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(-1);
    params.not_after = day(days);
}

/// Reads an ECDSA P-256 key (PKCS#8), or makes it.
fn ensure_key(path: &Path) -> Result<KeyPair, PkiError> {
    if let Some(pem) = file::read_if_there(path)? {
        let text = String::from_utf8_lossy(&pem);
        return KeyPair::from_pem(&text)
            .map_err(|error| PkiError::Damaged { path: path.into(), reason: error.to_string() });
    }
    let key = KeyPair::generate().map_err(|source| PkiError::Issue { name: path.display().to_string(), source })?;
    file::write(path, key.serialize_pem().as_bytes(), Access::Private)?;
    Ok(key)
}

/// Makes `sa.key` and `sa.pub` unless they are there.
pub(super) fn ensure_signing_key(dir: &Path) -> Result<(), PkiError> {
    let key = ensure_key(&dir.join("sa.key"))?;
    let public = dir.join("sa.pub");
    let pem = key.public_key_pem();
    if file::read_if_there(&public)?.as_deref() != Some(pem.as_bytes()) {
        file::write(&public, pem.as_bytes(), Access::Public)?;
    }
    Ok(())
}
