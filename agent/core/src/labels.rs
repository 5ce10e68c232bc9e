//! Names of the labels and annotations that the kubelet puts on sandboxes and containers; recovery after a restart
//! reads them back (kubelet: `pkg/kubelet/types`, `kuberuntime/labels.go`).

/// Label: name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: uid of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: name of the container in the pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: hash of the container's definition, in hex.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container has been started anew.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container writes its termination message.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the preStop handler as JSON.
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// Annotation: the container's ports as JSON.
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: grace period of the pod's deletion, in seconds.
pub const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
/// Annotation: grace period of the pod's spec, in seconds.
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Pod annotation: where the pod's definition came from (`file`, `http`, `api`).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Pod annotation: hash of a static pod's definition.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Pod annotation: when the agent first saw the pod.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Pod annotation: marks a mirror pod and holds the static pod's hash.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
