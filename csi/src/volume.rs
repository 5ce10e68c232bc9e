//! What can be decided about a volume without touching it: its id, its size, how it may be used.

use orlop_kernel::mount::Attributes;
use orlop_proto::csi::volume_capability::AccessType;
use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::{CapacityRange, VolumeCapability};
use sha2::{Digest, Sha256};

/// Size of a volume when none is asked for, in bytes.
const DEFAULT_BYTES: i64 = 1 << 30;
/// Longest name that CSI lets pass, in bytes (spec: size limits).
const NAME_MAX: usize = 128;
/// Parameters with this prefix are the provisioner's remarks, not settings.
const REMARKS: &str = "csi.storage.k8s.io/";

/// Why a request can't be met as it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VolumeError {
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A name that is too long or holds control characters.
    #[error("the name {0:?} is too long or holds control characters: {NAME_MAX} bytes at most")]
    Name(String),
    /// Block devices.
    #[error("a local volume is a folder: ask for volumeMode Filesystem, block devices are not served")]
    Block,
    /// Several nodes.
    #[error(
        "a local volume can be reached from its own node only: ask for ReadWriteOnce or ReadWriteOncePod instead of {0}"
    )]
    ManyNodes(&'static str),
    /// An access mode that CSI does not define.
    #[error("access mode {0} is not known")]
    Mode(i32),
    /// A file system.
    #[error("fsType {0:?} can't be chosen: a local volume has the file system of its data folder; leave it out")]
    FileSystem(String),
    /// A mount option.
    #[error("mount option {0:?} is not served: there are ro, rw, nosuid, nodev, noexec, noatime, relatime")]
    Option(String),
    /// A parameter.
    #[error("parameter {0:?} is not known: this driver takes no parameters")]
    Parameter(String),
    /// A size range without a size in it.
    #[error("capacity_range: limit_bytes {limit} is below required_bytes {required}")]
    Range {
        /// Bytes at least.
        required: i64,
        /// Bytes at most.
        limit: i64,
    },
}

/// The id of the volume of a name. The name may be anything; the id is a file name that can do no harm.
pub(crate) fn volume_id(name: &str) -> String {
    let mut id = format!("vol-{}", hex::encode(Sha256::digest(name)));
    id.truncate(36);
    id
}

/// Whether an id can be one of ours.
pub(crate) fn is_volume_id(id: &str) -> bool {
    id.len() == 36
        && id.strip_prefix("vol-").is_some_and(|hex| hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Checks the name of a new volume.
pub(crate) fn check_name(name: &str) -> Result<(), VolumeError> {
    if name.is_empty() {
        return Err(VolumeError::Missing("name"));
    }
    if name.len() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(VolumeError::Name(name.chars().take(NAME_MAX).collect()));
    }
    Ok(())
}

/// Checks the parameters of a class.
pub(crate) fn check_parameters<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), VolumeError> {
    match names.find(|name| !name.starts_with(REMARKS)) {
        Some(name) => Err(VolumeError::Parameter(name.clone())),
        None => Ok(()),
    }
}

/// Size of a new volume, in bytes.
pub(crate) fn new_size(range: Option<&CapacityRange>) -> Result<i64, VolumeError> {
    let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    if required < 0 || limit < 0 || (limit > 0 && limit < required) {
        return Err(VolumeError::Range { required, limit });
    }
    Ok(match (required, limit) {
        (0, 0) => DEFAULT_BYTES,
        (0, limit) => limit.min(DEFAULT_BYTES),
        (required, _) => required,
    })
}

/// Whether a volume of that size answers a request of that range.
pub(crate) fn fits(bytes: i64, range: Option<&CapacityRange>) -> bool {
    range.is_none_or(|range| bytes >= range.required_bytes && (range.limit_bytes == 0 || bytes <= range.limit_bytes))
}

/// How a volume is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// The access mode's number.
    pub(crate) mode: i32,
    /// Only one target may have it.
    pub(crate) single: bool,
    /// Nobody may write.
    pub(crate) read_only: bool,
    /// The options, in order.
    pub(crate) options: Vec<String>,
}

impl Access {
    /// The attributes of the mount.
    pub(crate) fn attributes(&self, read_only: bool) -> Attributes {
        let mut attributes = Attributes::empty();
        if self.read_only || read_only {
            attributes |= Attributes::MOUNT_ATTR_RDONLY;
        }
        for option in &self.options {
            attributes |= option_attributes(option).unwrap_or(Attributes::empty());
        }
        attributes
    }
}

fn option_attributes(option: &str) -> Option<Attributes> {
    Some(match option {
        "ro" => Attributes::MOUNT_ATTR_RDONLY,
        "rw" | "relatime" | "" => Attributes::empty(),
        "nosuid" => Attributes::MOUNT_ATTR_NOSUID,
        "nodev" => Attributes::MOUNT_ATTR_NODEV,
        "noexec" => Attributes::MOUNT_ATTR_NOEXEC,
        "noatime" => Attributes::MOUNT_ATTR_NOATIME,
        _ => return None,
    })
}

/// How a capability lets the volume be used.
pub(crate) fn check_capability(capability: Option<&VolumeCapability>) -> Result<Access, VolumeError> {
    let capability = capability.ok_or(VolumeError::Missing("volume_capability"))?;
    let mount = match &capability.access_type {
        None => return Err(VolumeError::Missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => return Err(VolumeError::Block),
        Some(AccessType::Mount(mount)) => mount,
    };
    if !mount.fs_type.is_empty() {
        return Err(VolumeError::FileSystem(mount.fs_type.clone()));
    }
    let options: Vec<String> = mount.mount_flags.iter().flat_map(|flags| flags.split(',')).map(str::to_owned).collect();
    if let Some(unknown) = options.iter().find(|option| option_attributes(option).is_none()) {
        return Err(VolumeError::Option(unknown.clone()));
    }
    let number = capability.access_mode.as_ref().ok_or(VolumeError::Missing("volume_capability.access_mode"))?.mode;
    let (single, read_only) = match Mode::try_from(number) {
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => (false, false),
        Ok(Mode::SingleNodeReaderOnly) => (false, true),
        Ok(Mode::SingleNodeSingleWriter) => (true, false),
        Ok(Mode::MultiNodeReaderOnly) => return Err(VolumeError::ManyNodes("ReadOnlyMany")),
        Ok(Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter) => {
            return Err(VolumeError::ManyNodes("ReadWriteMany"));
        }
        Ok(Mode::Unknown) | Err(_) => return Err(VolumeError::Mode(number)),
    };
    Ok(Access { mode: number, single, read_only, options })
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn capability(mode: Mode, fs_type: &str, flags: &[&str]) -> VolumeCapability {
        let mount_flags = flags.iter().map(ToString::to_string).collect();
        let mount = MountVolume { fs_type: fs_type.into(), mount_flags, ..MountVolume::default() };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }

    #[test]
    fn ids_are_harmless_and_always_the_same() {
        for name in ["pvc-1", "../../etc", "", "ä\n"] {
            let id = volume_id(name);
            assert!(is_volume_id(&id), "{name:?} -> {id}");
            assert_eq!(id, volume_id(name));
        }
        for id in
            ["", "vol-", "../etc", "vol-../../../../../../../../../../etc", "vol-ABCDEF0123456789ABCDEF0123456789"]
        {
            assert!(!is_volume_id(id), "{id}");
        }
    }

    #[test]
    fn names_and_parameters() {
        assert!(check_name(&"x".repeat(128)).is_ok());
        for name in ["".to_owned(), "x".repeat(129), "a\u{0}b".to_owned()] {
            assert!(check_name(&name).is_err(), "{name:?}");
        }
        let (remark, other) = ("csi.storage.k8s.io/pvc/name".to_owned(), "type".to_owned());
        assert!(check_parameters([&remark].into_iter()).is_ok());
        assert_eq!(check_parameters([&remark, &other].into_iter()), Err(VolumeError::Parameter(other.clone())));
    }

    #[test]
    fn sizes() {
        let range = |required_bytes, limit_bytes| CapacityRange { required_bytes, limit_bytes };
        assert_eq!(new_size(None), Ok(DEFAULT_BYTES));
        assert_eq!(new_size(Some(&range(5, 0))), Ok(5));
        assert_eq!(new_size(Some(&range(0, 7))), Ok(7));
        assert!(new_size(Some(&range(9, 8))).is_err());
        assert!(new_size(Some(&range(-1, 0))).is_err());
        for (bytes, asked, want) in [(5, range(5, 0), true), (5, range(6, 0), false), (5, range(0, 4), false)] {
            assert_eq!(fits(bytes, Some(&asked)), want);
        }
    }

    #[test]
    fn what_a_folder_of_one_node_can_not_be() {
        let writer = check_capability(Some(&capability(Mode::SingleNodeWriter, "", &["noexec", "ro"]))).unwrap();
        assert!(!writer.single && !writer.read_only);
        assert_eq!(writer.attributes(false), Attributes::MOUNT_ATTR_NOEXEC | Attributes::MOUNT_ATTR_RDONLY);
        assert!(check_capability(Some(&capability(Mode::SingleNodeSingleWriter, "", &[]))).unwrap().single);
        for wrong in [
            capability(Mode::MultiNodeMultiWriter, "", &[]),
            capability(Mode::MultiNodeReaderOnly, "", &[]),
            capability(Mode::Unknown, "", &[]),
            capability(Mode::SingleNodeWriter, "xfs", &[]),
            capability(Mode::SingleNodeWriter, "", &["loop"]),
            VolumeCapability {
                access_type: Some(AccessType::Block(BlockVolume {})),
                ..capability(Mode::SingleNodeWriter, "", &[])
            },
            VolumeCapability::default(),
        ] {
            assert!(check_capability(Some(&wrong)).is_err(), "{wrong:?}");
        }
        assert!(check_capability(None).is_err());
    }
}
