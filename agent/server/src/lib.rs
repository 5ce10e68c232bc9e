//! The kubelet port: TLS, authentication, authorisation, logs, exec, attach, port-forward and health.
