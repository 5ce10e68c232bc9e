//! Why a request fails, and the gRPC status it becomes.

use std::path::PathBuf;

use orlop_container::protocol::FailureKind;
use orlop_cri_spec::SpecError;
use orlop_image::ImageError;
use orlop_kernel::cgroup::CgroupError;
use orlop_kernel::namespace::NamespaceError;
use orlop_network::NetworkError;
use orlop_streaming::TooManyRequests;
use orlop_systemd::SystemdError;
use tonic::{Code, Status};

use crate::shim::ShimError;

/// Why a request of the RuntimeService fails.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// A field of the request can't be had.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The field is missing or wrong.
    #[error("{field}: {message}")]
    Argument {
        /// The field, as in the CRI.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// There is no such object.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// Several objects have ids that begin so.
    #[error("{kind} id {id:?} is the beginning of several ids; give more of it")]
    Ambiguous {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// Another object has the name.
    #[error("the name {name:?} is taken by {by}; remove that one or count the attempt up")]
    NameTaken {
        /// The name.
        name: String,
        /// The id of its owner.
        by: String,
    },
    /// The object is in a state that does not allow the request.
    #[error("{kind} {id} is {state}, but {wanted}")]
    State {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
        /// What the request needs.
        wanted: &'static str,
    },
    /// The pod's shim failed.
    #[error("{step} of {object}")]
    Shim {
        /// What was done.
        step: &'static str,
        /// Pod or container.
        object: String,
        /// Why.
        #[source]
        source: ShimError,
    },
    /// systemd does not do with a unit what it should.
    #[error("{step} of {object}")]
    Systemd {
        /// What was done.
        step: &'static str,
        /// Pod or container.
        object: String,
        /// Why.
        #[source]
        source: SystemdError,
    },
    /// The pod's network can't be made or taken down.
    #[error("{step} of pod {pod}")]
    Network {
        /// What was done.
        step: &'static str,
        /// `namespace/name`.
        pod: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// The pod's network namespace can't be made or removed.
    #[error("network namespace of pod {pod}")]
    Namespace {
        /// `namespace/name`.
        pod: String,
        /// Why.
        #[source]
        source: NamespaceError,
    },
    /// The image store failed.
    #[error("image {image:?}")]
    Image {
        /// As asked for.
        image: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A file or folder can't be made, read or removed.
    #[error("{step} {path:?}")]
    File {
        /// What was done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refuses a limit.
    #[error("set the limits of {object}")]
    Limits {
        /// The container.
        object: String,
        /// Which file, which value and why.
        #[source]
        source: CgroupError,
    },
    /// A command took longer than it may.
    #[error("command {command:?} in container {id} timed out after {seconds} s")]
    CommandTimeout {
        /// The container.
        id: String,
        /// The command.
        command: Vec<String>,
        /// The limit.
        seconds: i64,
    },
    /// A container did not end.
    #[error("container {id} did not end within {seconds} s after SIGKILL; a process of it hangs in the kernel")]
    Hangs {
        /// The container.
        id: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Too many streams wait for their client.
    #[error(transparent)]
    Busy(#[from] TooManyRequests),
    /// This runtime or this machine can't do it.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why, and what would be needed.
        reason: String,
    },
    /// A container can't be saved.
    #[error("save container {object}: {reason}")]
    Checkpoint {
        /// The container.
        object: String,
        /// Why, in CRIU's words.
        reason: String,
    },
    /// Nothing can be saved on this machine.
    #[error("CheckpointContainer needs CRIU: {reason}")]
    NoCriu {
        /// Why, and what would be needed.
        reason: String,
    },
    /// A task of the server ended early.
    #[error("the request ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A step with files that failed.
pub(crate) fn file(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> RpcError {
    let path = path.into();
    move |source| RpcError::File { step, path, source }
}

/// A field that is missing or wrong.
pub(crate) fn argument(field: &'static str, message: impl Into<String>) -> RpcError {
    RpcError::Argument { field, message: message.into() }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Status {
        let code = match &error {
            RpcError::Spec(_) | RpcError::Argument { .. } | RpcError::Ambiguous { .. } => Code::InvalidArgument,
            RpcError::NotFound { .. } => Code::NotFound,
            RpcError::NameTaken { .. } => Code::AlreadyExists,
            RpcError::State { .. } | RpcError::NoCriu { .. } => Code::FailedPrecondition,
            RpcError::Checkpoint { .. } => Code::Unknown,
            RpcError::Shim { source: ShimError::Failed { kind, .. }, .. } => match kind {
                FailureKind::NotFound => Code::NotFound,
                FailureKind::WrongState => Code::FailedPrecondition,
                // A program that can't be run is the caller's affair; the kubelet looks for no special code.
                FailureKind::Start | FailureKind::Internal => Code::Unknown,
            },
            RpcError::Systemd { .. } => Code::Unknown,
            RpcError::Shim { .. } | RpcError::Network { .. } | RpcError::Namespace { .. } => Code::Unknown,
            RpcError::Image { source, .. } => crate::image_service::to_status(source).code(),
            RpcError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Code::ResourceExhausted
            }
            RpcError::File { .. } | RpcError::Hangs { .. } | RpcError::Task(_) => Code::Internal,
            RpcError::Limits { .. } => Code::InvalidArgument,
            RpcError::Unsupported { .. } => Code::Unimplemented,
            RpcError::CommandTimeout { .. } => Code::DeadlineExceeded,
            RpcError::Busy(_) => Code::ResourceExhausted,
        };
        Status::new(code, chain(&error))
    }
}
