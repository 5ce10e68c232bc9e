//! Wire contracts: CRI, CSI and plugin registration, generated from the project's own `.proto` text.

pub mod json;

/// The container runtime interface of Kubernetes 1.36 (`runtime.v1`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The container storage interface 1.12 (`csi.v1`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's plugin registration (`pluginregistration`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
