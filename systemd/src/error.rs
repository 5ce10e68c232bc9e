//! Why systemd or logind did not do what they were asked for.

/// Why something about a unit failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The program has no way to systemd.
    #[error("this program was built without the feature for systemd; use the cgroupfs driver")]
    NotBuilt,
    /// systemd is not there.
    #[error(
        "systemd can't be reached, neither over the system bus (/run/dbus/system_bus_socket) nor at \
         /run/systemd/private: {reason}; run this as root on a machine that systemd has booted, or use the cgroupfs driver \
         (here and in the kubelet)"
    )]
    Unreachable {
        /// What both ways said.
        reason: String,
    },
    /// The connection broke.
    #[error("talk to systemd: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// It gave no answer in time.
    #[error("systemd has not finished with {unit} within {seconds} s; see systemctl list-jobs")]
    Late {
        /// The unit.
        unit: String,
        /// The limit.
        seconds: u64,
    },
    /// It said no.
    #[error("systemd refuses {unit}: {message} ({name})")]
    Refused {
        /// The unit.
        unit: String,
        /// The error's name on the bus.
        name: String,
        /// Its words.
        message: String,
    },
    /// Its hierarchy is not the one that we see.
    #[error(
        "systemd has made {unit}, but not at {path} of the cgroup hierarchy; run this in the cgroup namespace of systemd, or \
         use the cgroupfs driver (here and in the kubelet)"
    )]
    Elsewhere {
        /// The unit.
        unit: String,
        /// Where it should be.
        path: String,
    },
    /// A job came to another end.
    #[error("the job of systemd for {unit} ended as {result}; see systemctl status {unit}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `canceled`, `timeout`, `dependency` or `skipped`.
        result: String,
    },
}

impl SystemdError {
    /// There is no such unit.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, SystemdError::Refused { name, .. } if name == "org.freedesktop.systemd1.NoSuchUnit")
    }

    /// There is such a unit already.
    #[must_use]
    pub fn is_there(&self) -> bool {
        matches!(self, SystemdError::Refused { name, .. } if name == "org.freedesktop.systemd1.UnitExists")
    }
}

/// Why logind can't be listened to, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// The program has no way to the bus.
    #[error("this program was built without the feature for systemd")]
    NotBuilt,
    /// The bus is not there.
    #[error("the system bus can't be reached: {reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The bus, or logind on it, does not do what it was asked for.
    #[error("{step}: {reason}")]
    Refused {
        /// What was asked for.
        step: &'static str,
        /// Why not.
        reason: String,
    },
    /// No answer in time.
    #[error("{step}: no answer within {seconds} s")]
    Late {
        /// What was asked for.
        step: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A file of its configuration can't be written.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It read its configuration again and allows no more time than before.
    #[error(
        "logind delays a shutdown by {found:?} at most though {path} says {wanted:?}; see whether a file after it by name \
         sets InhibitDelayMaxSec"
    )]
    StillShort {
        /// The file that was written.
        path: std::path::PathBuf,
        /// What it allows.
        found: std::time::Duration,
        /// What it was told.
        wanted: std::time::Duration,
    },
}
