//! The agent wired together: configuration, flags and start-up.
//!
//! ```text
//!  AgentConfig ─> lock ─> runtime (CRI) ─> machine, cgroups ─┬─ API side: pods, objects, statuses, events, lease
//!                                                            ├─ node, plugins, volumes
//!                                                            ├─ pod manager
//!                                                            ├─ kubelet port
//!                                                            └─ shutdown: logind's word, or the program's
//! ```
//! Every part is restarted with back-off when it ends by itself; a cancelled agent leaves all containers running.

mod api_side;
mod config;
mod credentials;
mod duration;
mod identity;
mod images;
mod kubelet_config;
mod lock;
mod machine;
mod node_side;
mod port;
mod serve;
mod shutdown;
mod standalone;
mod storage;
mod supervise;
mod user_ids;

pub use config::{AgentConfig, CONTAINER_LOGS, CredentialProviderPaths};
pub use credentials::CredentialsError;
pub use duration::GoDuration;
pub use kubelet_config::{
    AnonymousAuthentication, Authentication, AuthorizationConfig, ConfigError, CrashLoopBackOff, KubeletConfiguration,
    LoadedConfig, PriorityGracePeriod, TaintConfig, UserNamespaces, WebhookAuthentication, WebhookAuthorization,
    X509Authentication, load_config, parse_config,
};
pub use serve::{AgentError, serve};
pub use shutdown::ShutdownOrder;
pub use user_ids::UserIdsError;
