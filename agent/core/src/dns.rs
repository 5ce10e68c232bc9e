//! What a pod's resolv.conf says.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::containers::{host_network, namespace, spec};

/// Most nameservers that the resolver takes.
pub const MAX_NAMESERVERS: usize = 3;
/// Most search domains that the API takes.
pub const MAX_SEARCHES: usize = 32;
/// Most characters of all search domains with the spaces between them.
pub const MAX_SEARCH_CHARACTERS: usize = 2048;

/// Search domains that pods get of the cluster's domain.
const CLUSTER_SEARCHES: usize = 3;
/// Most characters of one domain (RFC 1123).
const MAX_DOMAIN_CHARACTERS: usize = 253;

/// Lines of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSpec {
    /// Nameservers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, as `name` or `name:value`.
    pub options: Vec<String>,
}

/// The node's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDns {
    /// Nameservers of the cluster.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The node's own resolv.conf.
    pub host: DnsSpec,
}

/// Reads a resolv.conf; of lines that may be there once, the last counts.
pub fn parse_resolv_conf(text: &str) -> DnsSpec {
    let mut dns = DnsSpec::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                dns.searches = words
                    .map(|domain| if domain == "." { domain } else { domain.trim_end_matches('.') }.to_owned())
                    .collect()
            }
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

/// What of the node's resolv.conf is more than a pod's resolver may be given, in the kubelet's words; pods get less of
/// it then. With a domain of the cluster three searches are the cluster's.
pub fn resolv_conf_excess(path: &str, host: &DnsSpec, cluster_domain: &str) -> Option<String> {
    let most = if cluster_domain.is_empty() { MAX_SEARCHES } else { MAX_SEARCHES - CLUSTER_SEARCHES };
    let characters = host.searches.join(" ").len();
    if host.searches.len() > most {
        return Some(format!("Resolv.conf file '{path}' contains search line consisting of more than {most} domains!"));
    }
    if host.searches.iter().any(|search| search.len() > MAX_DOMAIN_CHARACTERS) {
        return Some(format!(
            "Resolv.conf file {path:?} contains a search path which length is more than allowed {MAX_DOMAIN_CHARACTERS} chars!"
        ));
    }
    (characters > MAX_SEARCH_CHARACTERS).then(|| {
        format!("Resolv.conf file '{path}' contains search line which length is more than allowed {MAX_SEARCH_CHARACTERS} chars!")
    })
}

/// The pod's resolver configuration, and warnings as (event reason, message).
pub fn pod_dns(pod: &Pod, node: &NodeDns) -> (DnsSpec, Vec<(&'static str, String)>) {
    let mut warnings = Vec::new();
    let policy = spec(pod).and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match (policy, cluster) {
        ("None", _) => DnsSpec::default(),
        (_, true) if node.cluster_dns.is_empty() => {
            warnings.push((
                "MissingClusterDNS",
                format!(
                    "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using {policy:?} policy. Falling back to \"Default\" policy.",
                    crate::containers::display(pod)
                ),
            ));
            node.host.clone()
        }
        (_, true) => cluster_first(namespace(pod), node),
        _ => node.host.clone(),
    };
    if let Some(extra) = spec(pod).and_then(|spec| spec.dns_config.as_ref()) {
        append(&mut dns.servers, extra.nameservers.as_deref().unwrap_or_default());
        append(&mut dns.searches, extra.searches.as_deref().unwrap_or_default());
        for option in extra.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            let text = option.value.as_ref().map_or_else(|| name.to_owned(), |value| format!("{name}:{value}"));
            dns.options.retain(|known| known.split(':').next() != Some(name));
            dns.options.push(text);
        }
    }
    bound(&mut dns, &mut warnings);
    (dns, warnings)
}

fn cluster_first(namespace: &str, node: &NodeDns) -> DnsSpec {
    let domain = &node.cluster_domain;
    let mut searches = if domain.is_empty() {
        Vec::new()
    } else {
        vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]
    };
    append(&mut searches, &node.host.searches);
    DnsSpec {
        servers: node.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn append(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn bound(dns: &mut DnsSpec, warnings: &mut Vec<(&'static str, String)>) {
    if dns.servers.len() > MAX_NAMESERVERS {
        dns.servers.truncate(MAX_NAMESERVERS);
        warnings.push((
            "DNSConfigForming",
            format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}", dns.servers.join(" ")),
        ));
    }
    let before = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        dns.searches.pop();
    }
    if dns.searches.len() < before {
        warnings.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                dns.searches.join(" ")
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeDns {
        NodeDns {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            host: parse_resolv_conf("# c\nnameserver 1.1.1.1\nsearch example.org.\noptions edns0\n"),
        }
    }

    fn dns(spec: serde_json::Value) -> (DnsSpec, usize) {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        let pod = serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns"}, "spec": spec})).unwrap();
        let (dns, warnings) = pod_dns(&pod, &node());
        (dns, warnings.len())
    }

    #[test]
    fn a_resolv_conf_of_the_node_with_too_much_is_told_of() {
        let many =
            |count: usize, length: usize| DnsSpec { searches: vec!["x".repeat(length); count], ..DnsSpec::default() };
        for (host, domain, want) in [
            (many(0, 0), "cluster.local", None),
            (many(29, 10), "cluster.local", None),
            (
                many(30, 10),
                "cluster.local",
                Some("Resolv.conf file '/r' contains search line consisting of more than 29 domains!"),
            ),
            (many(32, 10), "", None),
            (many(33, 10), "", Some("Resolv.conf file '/r' contains search line consisting of more than 32 domains!")),
            (
                many(1, 254),
                "",
                Some("Resolv.conf file \"/r\" contains a search path which length is more than allowed 253 chars!"),
            ),
            (
                many(9, 253),
                "",
                Some("Resolv.conf file '/r' contains search line which length is more than allowed 2048 chars!"),
            ),
        ] {
            let got = resolv_conf_excess("/r", &host, domain);
            assert_eq!(got.as_deref(), want, "{} of {:?}, {domain:?}", host.searches.len(), host.searches.first());
        }
    }

    #[test]
    fn policies() {
        let (first, _) = dns(serde_json::json!({}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"]);
        assert_eq!(first.options, ["ndots:5"]);
        for spec in [serde_json::json!({"dnsPolicy": "Default"}), serde_json::json!({"hostNetwork": true})] {
            assert_eq!(dns(spec).0, node().host);
        }
        let (none, _) = dns(
            serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "ndots", "value": "2"}]}}),
        );
        assert_eq!((none.servers, none.options), (vec!["9.9.9.9".to_owned()], vec!["ndots:2".to_owned()]));
    }

    #[test]
    fn limits_cut_and_warn() {
        let (dns, warnings) = dns(serde_json::json!({"dnsConfig": {"nameservers": ["1.0.0.1", "1.0.0.2", "1.0.0.3"]}}));
        assert_eq!((dns.servers.len(), warnings), (3, 1));
    }
}
