//! `Version`, `Status` and `RuntimeConfig`.

use std::collections::HashMap;

use orlop_kernel::cgroup::unit::Driver;
use orlop_proto::cri;
use serde_json::json;

use crate::error::{RpcError, argument};
use crate::server::Server;

/// Version of the interface between kubelet and runtime, as every runtime answers it.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Who this is.
pub(crate) fn version(request: &cri::VersionRequest) -> Result<cri::VersionResponse, RpcError> {
    if !matches!(request.version.as_str(), "" | "v1" | KUBELET_API_VERSION) {
        return Err(argument("version", format!("{:?} is not served; v1 is", request.version)));
    }
    Ok(cri::VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: "orlop".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}

/// Whether pods can be run.
pub(crate) async fn status(server: &Server, request: cri::StatusRequest) -> cri::StatusResponse {
    let condition = |kind: &str, trouble: Option<(&str, String)>| {
        let (reason, message) = trouble.clone().unwrap_or_default();
        cri::RuntimeCondition { r#type: kind.into(), status: trouble.is_none(), reason: reason.into(), message }
    };
    let network = server.network_status.check(&server.network).await.err();
    let conditions = vec![
        condition("RuntimeReady", None),
        condition("NetworkReady", network.map(|message| ("NetworkPluginNotReady", message))),
    ];
    let features =
        cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: server.user_namespaces };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info: if request.verbose { info(server) } else { HashMap::new() },
        runtime_handlers: server.live().handlers.list(features),
        features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
    }
}

/// What `crictl info` shows beside the status.
fn info(server: &Server) -> HashMap<String, String> {
    let config = &server.config;
    let places = json!({
        "stateDir": config.run_dir,
        "rootDir": config.state_dir,
        "cni": {"confDir": config.network.conf_dir, "binDirs": config.network.bin_dirs},
        "streamServerAddress": config.streaming.to_string(),
        "shim": config.shim_program,
        "cgroupDriver": config.cgroup_driver,
    });
    let mut info = HashMap::from([("config".to_string(), places.to_string())]);
    match server.network.list() {
        Ok(list) => {
            let plugins: Vec<_> = list.plugins.iter().map(|plugin| plugin.get("type").cloned()).collect();
            let network = json!({"name": list.name, "cniVersion": list.version, "plugins": plugins});
            info.insert("cniconfig".into(), network.to_string());
            info.insert("lastCNILoadStatus".into(), "OK".into());
        }
        Err(error) => {
            info.insert("lastCNILoadStatus".into(), crate::error::chain(&error));
        }
    }
    info
}

/// What a kubelet has to know of the runtime: who drives the cgroups.
pub(crate) fn config(server: &Server) -> cri::RuntimeConfigResponse {
    let driver = match server.config.cgroup_driver {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

/// The kubelet tells the pods' addresses of its node. Addresses come from the configuration of the network plugins here,
/// so there is nothing to keep; what is no list of address ranges is refused.
pub(crate) fn update_config(
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, RpcError> {
    let ranges = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    for range in ranges.split(',').filter(|range| !range.is_empty()) {
        if range.parse::<ipnetwork::IpNetwork>().is_err() {
            return Err(argument("runtime_config.network_config.pod_cidr", format!("{range:?} is no address range")));
        }
    }
    tracing::info!(
        pod_cidr = ranges,
        "the kubelet told the pods' addresses; the network plugins' configuration decides"
    );
    Ok(cri::UpdateRuntimeConfigResponse {})
}
