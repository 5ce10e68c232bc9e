//! What the pods' network needs, tried in a namespace that nobody else sees.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;

use orlop_kernel::namespace;
use orlop_kernel::network::{Links, NetworkError, VethPair, read_sysctl};
use orlop_kernel::nftables::{Batch, Family, Hook, Nftables, NftablesError, PRIORITY_SNAT, Step};

use super::{Finding, Place, chain};
use crate::layout::{Instance, Layout};

/// Does something in a network namespace of its own.
fn inside<T: Send>(place: &Place, name: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let path = place.scratch.join(name);
    std::fs::create_dir_all(&place.scratch).map_err(|error| format!("{}: {error}", place.scratch.display()))?;
    namespace::create_network(&path).map_err(|error| chain(&error))?;
    let done = namespace::in_network(&path, work).map_err(|error| chain(&error));
    let removed = namespace::remove_network(&path).map_err(|error| chain(&error));
    done.and_then(|done| removed.map(|()| done))
}

pub(super) fn links(place: &Place) -> Finding {
    let made = inside(place, "links", || {
        let links = Links::open()?;
        links.add_bridge("bridge", 0, false)?;
        let bridge = links.find("bridge")?.map(|link| link.index);
        let own = namespace::open(std::path::Path::new("/proc/thread-self/ns/net"));
        let own = own.map_err(|error| Trouble::Open(error.to_string()))?;
        let pair = VethPair {
            name: "outside",
            controller: bridge,
            peer: "inside",
            peer_namespace: own.as_fd(),
            peer_mac: None,
            mtu: 0,
        };
        Ok::<(), Trouble>(links.add_veth(&pair)?)
    });
    let advice = "modprobe veth bridge (CONFIG_VETH, CONFIG_BRIDGE, CONFIG_NET_NS); CAP_NET_ADMIN and CAP_SYS_ADMIN are \
                  needed";
    match made {
        Ok(Ok(())) => Finding::Fine("network namespaces, bridge and veth".into()),
        Ok(Err(Trouble::Open(error))) | Err(error) => Finding::Missing(error, advice.into()),
        Ok(Err(Trouble::Network(error))) => Finding::Missing(chain(&error), advice.into()),
    }
}

/// Why links can't be made.
enum Trouble {
    Open(String),
    Network(NetworkError),
}

impl From<NetworkError> for Trouble {
    fn from(error: NetworkError) -> Trouble {
        Trouble::Network(error)
    }
}

pub(super) fn nftables(place: &Place) -> Finding {
    let made = inside(place, "nftables", || {
        Nftables::open().change(|_| {
            let mut batch = Batch::default();
            batch
                .table(Family::Inet, "doctor", "")
                .nat_chain(Family::Inet, "doctor", "out", Hook::Postrouting, PRIORITY_SNAT)
                .rule(Family::Inet, "doctor", "out", &[Step::Masquerade], "");
            Ok::<Batch, NftablesError>(batch)
        })
    });
    let advice = "modprobe nf_tables nft_masq nft_nat (CONFIG_NF_TABLES_INET, CONFIG_NFT_MASQ, CONFIG_NFT_NAT); host ports \
                  and pods' way out need them";
    match made {
        Ok(Ok(())) => Finding::Fine("addresses can be translated".into()),
        Ok(Err(error)) => Finding::Missing(chain(&error), advice.into()),
        Err(error) => Finding::Missing(error, advice.into()),
    }
}

pub(super) fn forwarding(_: &Place) -> Finding {
    match read_sysctl("ipv4/ip_forward") {
        Ok(value) if value.trim() == "1" => Finding::Fine("IPv4 packets are forwarded".into()),
        Ok(_) => Finding::Fine("off; the bridge plugin turns it on with the first pod".into()),
        Err(error) => Finding::Missing(
            format!("net.ipv4.ip_forward can't be read: {error}"),
            "boot a kernel with CONFIG_INET and mount /proc".into(),
        ),
    }
}

pub(super) fn ports(place: &Place) -> Finding {
    let (api, kubelet) = match Instance::ports(&place.layout) {
        Ok(Some(ports)) => ports,
        Ok(None) => return Finding::Fine("free ones are chosen at the first start".into()),
        Err(error) => return Finding::Missing(format!("{error:#}"), "see what it says about the file".into()),
    };
    if running(&place.layout) {
        return Finding::Fine(format!("{api} and {kubelet} are used by the daemon that runs"));
    }
    let taken: Vec<String> = [api, kubelet]
        .into_iter()
        .filter_map(|port| {
            let error = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).err()?;
            Some(format!("{port} ({error})"))
        })
        .collect();
    match taken.is_empty() {
        true => Finding::Fine(format!("{api} (API) and {kubelet} (kubelet) are free")),
        false => Finding::Missing(
            format!("not free: {}", taken.join(", ")),
            "end who listens there (ss -ltnp), or choose others: orlop up --port, orlop node --port".into(),
        ),
    }
}

/// Whether the instance's daemon runs.
fn running(layout: &Layout) -> bool {
    std::fs::File::open(layout.pid_file()).is_ok_and(|file| file.try_lock().is_err())
}
