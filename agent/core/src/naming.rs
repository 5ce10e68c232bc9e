//! Names that a pod has inside: host name, domain, /etc/hosts.

use k8s_openapi::api::core::v1::Pod;

use crate::containers::{host_network, name, namespace, spec};

/// Why a pod can't get the host name that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {length} characters requested)"
)]
pub struct FqdnTooLong {
    /// The name.
    pub fqdn: String,
    /// Its length.
    pub length: usize,
}

/// The names of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNames {
    /// Host name of the sandbox.
    pub sandbox_hostname: String,
    /// Short name in /etc/hosts.
    pub hostname: String,
    /// Domain in /etc/hosts; empty without subdomain.
    pub domain: String,
}

/// Host names are at most 63 characters; what is cut may not end in `-` or `.`.
fn truncate(name: &str) -> String {
    let cut: String = name.chars().take(63).collect();
    if cut.len() == name.len() { cut } else { cut.trim_end_matches(['-', '.']).to_owned() }
}

/// The names of a pod on the node `node_name` in the cluster domain.
pub fn pod_names(pod: &Pod, node_name: &str, cluster_domain: &str) -> Result<PodNames, FqdnTooLong> {
    let blank = Default::default();
    let spec = spec(pod).unwrap_or(&blank);
    let hostname = truncate(spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or_else(|| name(pod)));
    let domain = match spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)),
        None => String::new(),
    };
    let sandbox_hostname = if host_network(pod) {
        node_name.to_owned()
    } else if let Some(over) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        truncate(over)
    } else if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        let fqdn = format!("{hostname}.{domain}");
        if fqdn.len() > 64 {
            return Err(FqdnTooLong { length: fqdn.len(), fqdn });
        }
        fqdn
    } else {
        hostname.clone()
    };
    Ok(PodNames { sandbox_hostname, hostname, domain })
}

/// Contents of a pod's /etc/hosts. `node_hosts` is the node's own file, which a pod on the node's network starts from.
pub fn hosts_file(pod: &Pod, names: &PodNames, ips: &[String], node_hosts: &str) -> String {
    let mut text = if host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            if names.domain.is_empty() {
                text += &format!("{ip}\t{}\n", names.hostname);
            } else {
                text += &format!("{ip}\t{0}.{1}\t{0}\n", names.hostname, names.domain);
            }
        }
        text
    };
    let aliases = spec(pod).and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        serde_json::from_value(serde_json::json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn names_are_cut_joined_and_overridden() {
        let long = format!("{}-tail", "a".repeat(62));
        for (name, spec, want) in [
            ("web", serde_json::json!({}), ("web", "web", "")),
            (long.as_str(), serde_json::json!({}), (&*"a".repeat(62), &*"a".repeat(62), "")),
            ("web", serde_json::json!({"hostname": "h", "subdomain": "s"}), ("h", "h", "s.ns.svc.cluster.local")),
            (
                "web",
                serde_json::json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                ("web.s.ns.svc.cluster.local", "web", "s.ns.svc.cluster.local"),
            ),
            ("web", serde_json::json!({"hostNetwork": true}), ("node", "web", "")),
            ("web", serde_json::json!({"hostnameOverride": "other"}), ("other", "web", "")),
        ] {
            let names = pod_names(&pod(name, spec), "node", "cluster.local").unwrap();
            assert_eq!((&*names.sandbox_hostname, &*names.hostname, &*names.domain), want);
        }
        let fqdn = serde_json::json!({"subdomain": "s", "setHostnameAsFQDN": true});
        assert!(pod_names(&pod(&"a".repeat(60), fqdn), "node", "cluster.local").is_err());
    }

    #[test]
    fn hosts_files() {
        let pod = pod(
            "web",
            serde_json::json!({"subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}),
        );
        let names = pod_names(&pod, "node", "c.l").unwrap();
        let text = hosts_file(&pod, &names, &["10.0.0.2".into()], "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with("10.0.0.2\tweb.s.ns.svc.c.l\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"),
            "{text}"
        );
    }
}
