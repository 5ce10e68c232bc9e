//! The embedded single-node Kubernetes API server.
