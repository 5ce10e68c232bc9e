//! A real control plane inside a world: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
//!
//! What of a cluster is not here is stood in for by the least that does it: the address of the `kubernetes` Service is
//! translated by one rule (kube-proxy's work).

use std::path::{Path, PathBuf};

use orlop_apiserver::pki::{Client, Pki, PkiOptions};

use crate::place::foreign;
use crate::world::{Daemon, World, run, until};

/// The machine's address that isn't loopback.
pub const NODE_IP: &str = "192.0.2.2";
/// Name of the node.
pub const NODE: &str = "node-1";
/// Port of the API.
const PORT: u16 = 6443;
/// Range of the addresses of Services; the first one is the API's.
const SERVICES: &str = "10.96.0.0/16";
const API_SERVICE: &str = "10.96.0.1";

/// The running control plane.
pub struct ControlPlane {
    folder: PathBuf,
    pki: Pki,
    daemons: Vec<Daemon>,
}

impl ControlPlane {
    /// Gives the world an address and starts all four programs, the API server with these feature gates; returns when the
    /// API is ready.
    ///
    /// # Panics
    /// When a program is missing, ends or is not ready in time.
    #[must_use]
    pub fn start(world: &World, gates: &str) -> ControlPlane {
        let folder = world.folder().join("plane");
        std::fs::create_dir_all(folder.join("empty")).unwrap();
        let script = format!(
            "ip link add out0 type veth peer name out1 && ip addr add {NODE_IP}/24 dev out0 && ip link set out0 up && \
             ip link set out1 up && ip route add default via 192.0.2.1 dev out0 && \
             nft 'add table ip services; \
             add chain ip services pods {{ type nat hook prerouting priority -100; }}; \
             add chain ip services own {{ type nat hook output priority -100; }}; \
             add rule ip services pods ip daddr {API_SERVICE} tcp dport 443 dnat to {NODE_IP}:{PORT}; \
             add rule ip services own ip daddr {API_SERVICE} tcp dport 443 dnat to {NODE_IP}:{PORT}'"
        );
        run(world.command("sh").args(["-c", &script]));
        let options = PkiOptions {
            node_name: NODE.into(),
            api_names: vec![NODE_IP.into(), API_SERVICE.into()],
            kubelet_names: vec![NODE_IP.into()],
        };
        let pki = Pki::ensure(&folder.join("pki"), &options).expect("make keys and certificates");
        let server = format!("https://{NODE_IP}:{PORT}");
        for (client, file) in [
            (Client::Admin, "admin"),
            (Client::Node, "node"),
            (Client::ControllerManager, "controller-manager"),
            (Client::Scheduler, "scheduler"),
        ] {
            let kubeconfig = pki.kubeconfig(client, &server).expect("make a kubeconfig");
            kubeconfig.write(&folder.join(format!("{file}.kubeconfig"))).expect("write a kubeconfig");
        }
        let mut plane = ControlPlane { folder, pki, daemons: Vec::new() };
        plane.start_store(world);
        plane.start_api(world, gates);
        let ready = plane.kubeconfig("admin");
        until("kube-apiserver is ready", || {
            let mut kubectl = world.command(foreign("kubectl"));
            kubectl.arg("--kubeconfig").arg(&ready).args(["get", "--raw", "/readyz"]);
            kubectl.output().unwrap().status.success().then_some(())
        });
        plane.start_controllers(world);
        plane
    }

    /// The kubeconfig of `admin`, `node`, `controller-manager` or `scheduler`.
    #[must_use]
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    /// Keys and certificates.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    fn start_store(&mut self, world: &World) {
        let url = "http://127.0.0.1:2379";
        let peer = "http://127.0.0.1:2380";
        let data = format!("--data-dir={}", self.folder.join("etcd").display());
        self.daemon(
            world,
            "etcd",
            &[
                data.as_str(),
                "--unsafe-no-fsync",
                "--log-level=warn",
                &format!("--listen-client-urls={url}"),
                &format!("--advertise-client-urls={url}"),
                &format!("--listen-peer-urls={peer}"),
                &format!("--initial-advertise-peer-urls={peer}"),
                &format!("--initial-cluster=default={peer}"),
            ],
        );
    }

    fn start_api(&mut self, world: &World, gates: &str) {
        let (certificate, key) = self.pki.api_serving();
        let (kubelet_certificate, kubelet_key) = self.pki.client(Client::ApiToKubelet);
        let (proxy_certificate, proxy_key) = self.pki.front_proxy_client();
        let (signing, checking) = self.pki.service_account_keys();
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_string(),
            format!("--advertise-address={NODE_IP}"),
            format!("--secure-port={PORT}"),
            file("tls-cert-file", &certificate),
            file("tls-private-key-file", &key),
            file("client-ca-file", &self.pki.ca_certificate()),
            file("kubelet-client-certificate", &kubelet_certificate),
            file("kubelet-client-key", &kubelet_key),
            file("kubelet-certificate-authority", &self.pki.ca_certificate()),
            "--kubelet-preferred-address-types=InternalIP".to_string(),
            file("requestheader-client-ca-file", &self.pki.front_proxy_ca_certificate()),
            "--requestheader-username-headers=X-Remote-User".to_string(),
            "--requestheader-group-headers=X-Remote-Group".to_string(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_string(),
            file("proxy-client-cert-file", &proxy_certificate),
            file("proxy-client-key-file", &proxy_key),
            "--service-account-issuer=https://kubernetes.default.svc".to_string(),
            file("service-account-key-file", &checking),
            file("service-account-signing-key-file", &signing),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".to_string(),
            "--enable-admission-plugins=NodeRestriction".to_string(),
            "--allow-privileged=true".to_string(),
            format!("--feature-gates={gates}"),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.daemon(world, "kube-apiserver", &arguments);
    }

    fn start_controllers(&mut self, world: &World) {
        let (signing, _) = self.pki.service_account_keys();
        let kubeconfig = |name: &str| format!("--kubeconfig={}", self.kubeconfig(name).display());
        let arguments = [
            kubeconfig("controller-manager"),
            "--leader-elect=false".to_string(),
            "--use-service-account-credentials".to_string(),
            "--bind-address=127.0.0.1".to_string(),
            format!("--service-account-private-key-file={}", signing.display()),
            format!("--root-ca-file={}", self.pki.ca_certificate().display()),
            format!("--cluster-signing-cert-file={}", self.pki.ca_certificate().display()),
            format!("--cluster-signing-key-file={}", self.pki.ca_key().display()),
        ];
        let scheduler =
            [kubeconfig("scheduler"), "--leader-elect=false".to_string(), "--bind-address=127.0.0.1".to_string()];
        let words = |list: &[String]| list.to_vec();
        for (program, list) in [("kube-controller-manager", words(&arguments)), ("kube-scheduler", words(&scheduler))] {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            self.daemon(world, program, &list);
        }
    }

    fn daemon(&mut self, world: &World, program: &str, arguments: &[&str]) {
        // Programs may write into their working folder: each has an empty one.
        let mut command = world.command("env");
        command.arg("-C").arg(self.folder.join("empty")).arg(foreign(program)).args(arguments);
        self.daemons.push(Daemon::start(command, world.folder().join(format!("{program}.log"))).silent());
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Last started, first ended: the store outlives those who write to it.
        while let Some(daemon) = self.daemons.pop() {
            drop(daemon);
        }
    }
}
