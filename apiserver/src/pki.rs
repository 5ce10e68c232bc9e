//! Keys and certificates of a cluster on disk: made once, renewed before they end, readable by a real kube-apiserver.

mod authority;
mod file;
mod kubeconfig;

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use authority::{Authority, Profile, Usage};
pub use kubeconfig::{Kubeconfig, KubeconfigCredential};

/// Names and addresses that go into the certificates.
#[derive(Clone, Debug, Default)]
pub struct PkiOptions {
    /// The node's name: subject `system:node:<name>` and a DNS name of the kubelet's certificate.
    pub node_name: String,
    /// DNS names and IP addresses under which the API is reached; the usual service names and loopback are added.
    pub api_names: Vec<String>,
    /// DNS names and IP addresses under which the kubelet is reached; node name and loopback are added.
    pub kubelet_names: Vec<String>,
}

/// Why keys and certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A key or an authority's certificate is damaged; leaf certificates are made anew instead.
    #[error("{} is damaged ({reason}); restore it, or move the folder {} away to have a new cluster identity made", path.display(), path.parent().unwrap_or(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("make the certificate {name}")]
    Issue {
        /// The certificate's name.
        name: String,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
}

/// The clients that get a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The administrator: `kubernetes-admin` in `system:masters`.
    Admin,
    /// The node: `system:node:<name>` in `system:nodes`.
    Node,
    /// The API server towards kubelets.
    ApiToKubelet,
    /// A real controller manager.
    ControllerManager,
    /// A real scheduler.
    Scheduler,
}

impl Client {
    const ALL: [Client; 5] =
        [Client::Admin, Client::Node, Client::ApiToKubelet, Client::ControllerManager, Client::Scheduler];

    /// Stem of the file names.
    fn stem(self) -> &'static str {
        match self {
            Client::Admin => "admin",
            Client::Node => "kubelet-client",
            Client::ApiToKubelet => "apiserver-kubelet-client",
            Client::ControllerManager => "controller-manager",
            Client::Scheduler => "scheduler",
        }
    }

    /// Common name and organisation: user and group to Kubernetes.
    fn subject(self, node_name: &str) -> (String, Option<&'static str>) {
        match self {
            Client::Admin => ("kubernetes-admin".into(), Some("system:masters")),
            Client::Node => (format!("system:node:{node_name}"), Some("system:nodes")),
            Client::ApiToKubelet => ("kube-apiserver-kubelet-client".into(), Some("system:masters")),
            Client::ControllerManager => ("system:kube-controller-manager".into(), None),
            Client::Scheduler => ("system:kube-scheduler".into(), None),
        }
    }
}

/// The folder with everything in it.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes what is missing, renews what ends within 30 days or names other addresses, keeps the rest.
    ///
    /// # Errors
    /// When the folder can't be written, or a key or an authority is damaged.
    pub fn ensure(dir: &Path, options: &PkiOptions) -> Result<Pki, PkiError> {
        file::make_private_folder(dir)?;
        let pki = Pki { dir: dir.to_path_buf() };
        let authority = Authority::ensure(dir, "ca", "orlop-ca")?;
        let front_proxy = Authority::ensure(dir, "front-proxy-ca", "orlop-front-proxy-ca")?;

        let mut api_names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "::1",
        ]
        .map(String::from)
        .to_vec();
        api_names.extend(options.api_names.iter().cloned());
        authority.ensure_leaf("apiserver", &Profile::server("kube-apiserver", api_names))?;

        let mut kubelet_names = vec![options.node_name.clone(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        kubelet_names.extend(options.kubelet_names.iter().cloned());
        let mut kubelet = Profile::server(&format!("system:node:{}", options.node_name), kubelet_names);
        kubelet.organization = Some("system:nodes".into());
        authority.ensure_leaf("kubelet", &kubelet)?;

        for client in Client::ALL {
            let (name, organization) = client.subject(&options.node_name);
            authority.ensure_leaf(client.stem(), &Profile::client(&name, organization))?;
        }
        front_proxy.ensure_leaf("front-proxy-client", &Profile::client("front-proxy-client", None))?;
        authority::ensure_signing_key(dir)?;
        Ok(pki)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Certificate of the authority that all clients and servers trust.
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Key of the authority, for signing certificate requests.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// Serving certificate and key of the API server.
    pub fn api_serving(&self) -> (PathBuf, PathBuf) {
        self.pair("apiserver")
    }

    /// Serving certificate and key of the kubelet.
    pub fn kubelet_serving(&self) -> (PathBuf, PathBuf) {
        self.pair("kubelet")
    }

    /// Certificate and key of a client.
    pub fn client(&self, client: Client) -> (PathBuf, PathBuf) {
        self.pair(client.stem())
    }

    /// Certificate of the authority that a real API server trusts for request headers.
    pub fn front_proxy_ca_certificate(&self) -> PathBuf {
        self.dir.join("front-proxy-ca.crt")
    }

    /// Certificate and key of a real API server's proxy client.
    pub fn front_proxy_client(&self) -> (PathBuf, PathBuf) {
        self.pair("front-proxy-client")
    }

    /// Private and public key (ES256) that sign and check service-account tokens.
    pub fn service_account_keys(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("sa.key"), self.dir.join("sa.pub"))
    }

    /// The kubeconfig of a client, with everything embedded.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn kubeconfig(&self, client: Client, server: &str) -> Result<Kubeconfig, PkiError> {
        let (certificate, key) = self.client(client);
        Ok(Kubeconfig {
            server: server.to_string(),
            cluster: "orlop".into(),
            user: client.stem().into(),
            ca_pem: file::read(&self.ca_certificate())?,
            credential: KubeconfigCredential::Embedded {
                certificate_pem: file::read(&certificate)?,
                key_pem: file::read(&key)?,
            },
        })
    }

    fn pair(&self, stem: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{stem}.crt")), self.dir.join(format!("{stem}.key")))
    }
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// When the file can't be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let pem = file::read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(PkiError::Damaged { path: path.into(), reason: "it holds no certificate".into() }),
        Err(error) => Err(PkiError::Damaged { path: path.into(), reason: error.to_string() }),
    }
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// When the file can't be read or holds none.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    let pem = file::read(path)?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| PkiError::Damaged { path: path.into(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn options() -> PkiOptions {
        PkiOptions {
            node_name: "one".into(),
            api_names: vec!["10.88.0.1".into()],
            kubelet_names: vec!["10.88.0.1".into()],
        }
    }

    #[test]
    fn a_second_time_changes_nothing_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &options()).unwrap();
        let before = std::fs::read(pki.api_serving().0).unwrap();
        Pki::ensure(dir.path(), &options()).unwrap();
        assert_eq!(before, std::fs::read(pki.api_serving().0).unwrap());
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "key") {
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
            }
        }
    }

    #[test]
    fn another_address_renews_the_serving_certificate_only() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &options()).unwrap();
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let (serving, admin) = (read(pki.api_serving().0), read(pki.client(Client::Admin).0));
        let mut other = options();
        other.api_names.push("192.0.2.1".into());
        Pki::ensure(dir.path(), &other).unwrap();
        assert_ne!(serving, read(pki.api_serving().0));
        assert_eq!(admin, read(pki.client(Client::Admin).0));
    }

    #[test]
    fn a_damaged_authority_is_told_and_a_damaged_leaf_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &options()).unwrap();
        std::fs::write(pki.api_serving().0, "x").unwrap();
        Pki::ensure(dir.path(), &options()).unwrap();
        assert!(read_certificates(&pki.api_serving().0).is_ok());
        std::fs::write(pki.ca_key(), "x").unwrap();
        let told = Pki::ensure(dir.path(), &options()).unwrap_err().to_string();
        assert!(told.contains("ca.key is damaged"), "{told}");
    }
}
