//! The options of a mount, as `mount(8)` and the OCI runtime specification write them.

use orlop_kernel::mount::{Attributes, FsOption, Propagation};

use crate::config::Mount;

/// What the options of a mount ask for.
#[derive(Debug)]
pub(crate) struct MountOptions<'a> {
    /// Attributes that the mount gets, and those that it loses.
    pub(crate) set: Attributes,
    pub(crate) clear: Attributes,
    /// The same for all mounts below it too.
    pub(crate) set_all: Attributes,
    pub(crate) clear_all: Attributes,
    /// How it shares, and whether those below it do so too; in order.
    pub(crate) propagation: Vec<(Propagation, bool)>,
    /// It takes the mounts below its source along.
    pub(crate) recursive: bool,
    /// Its files are shown with mapped ids, and those of the mounts below it when so.
    pub(crate) map_ids: Option<bool>,
    /// A tmpfs that begins with what lies at its place.
    pub(crate) copy_up: bool,
    /// For the file system.
    pub(crate) data: Vec<FsOption<'a>>,
}

/// Names of attributes: what is set and what is cleared. With an `r` in front they are meant for all mounts below.
const ATTRIBUTES: [(&str, Attributes, bool); 18] = [
    ("ro", Attributes::MOUNT_ATTR_RDONLY, true),
    ("rw", Attributes::MOUNT_ATTR_RDONLY, false),
    ("nosuid", Attributes::MOUNT_ATTR_NOSUID, true),
    ("suid", Attributes::MOUNT_ATTR_NOSUID, false),
    ("nodev", Attributes::MOUNT_ATTR_NODEV, true),
    ("dev", Attributes::MOUNT_ATTR_NODEV, false),
    ("noexec", Attributes::MOUNT_ATTR_NOEXEC, true),
    ("exec", Attributes::MOUNT_ATTR_NOEXEC, false),
    ("nodiratime", Attributes::MOUNT_ATTR_NODIRATIME, true),
    ("diratime", Attributes::MOUNT_ATTR_NODIRATIME, false),
    ("nosymfollow", Attributes::MOUNT_ATTR_NOSYMFOLLOW, true),
    ("symfollow", Attributes::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("noatime", Attributes::MOUNT_ATTR_NOATIME, true),
    ("strictatime", Attributes::MOUNT_ATTR_STRICTATIME, true),
    // The kernel's own way of keeping access times is the one without a bit.
    ("relatime", Attributes::MOUNT_ATTR__ATIME, false),
    ("atime", Attributes::MOUNT_ATTR__ATIME, false),
    ("norelatime", Attributes::MOUNT_ATTR__ATIME, false),
    ("nostrictatime", Attributes::MOUNT_ATTR__ATIME, false),
];

/// Options that a file system takes, and none that is bound has.
const SUPERBLOCK: [&str; 9] =
    ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime", "silent", "loud"];

/// All names that [`MountOptions::read`] knows, for those who ask.
#[must_use]
pub fn known_options() -> Vec<String> {
    let plain = ["bind", "rbind", "defaults", "tmpcopyup", "idmap", "ridmap"].into_iter().map(String::from);
    let propagations = ["private", "slave", "shared", "unbindable"];
    let propagations = propagations.into_iter().flat_map(|name| [name.to_string(), format!("r{name}")]);
    let attributes = ATTRIBUTES.iter().flat_map(|(name, ..)| [(*name).to_string(), format!("r{name}")]);
    let mut all: Vec<String> =
        plain.chain(propagations).chain(attributes).chain(SUPERBLOCK.map(String::from)).collect();
    all.sort();
    all.dedup();
    all
}

/// Whether an option concerns the mount and not its file system.
pub(super) fn is_of_mount(option: &str) -> bool {
    !SUPERBLOCK.contains(&option) && known_options().iter().any(|known| known == option)
}

impl<'a> MountOptions<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// Names an option that a bind mount can't have.
    pub(crate) fn read(entry: &'a Mount) -> Result<MountOptions<'a>, String> {
        let none = Attributes::empty();
        let mut read = MountOptions {
            set: none,
            clear: none,
            set_all: none,
            clear_all: none,
            propagation: Vec::new(),
            recursive: !entry.options.iter().any(|option| option == "bind"),
            map_ids: None,
            copy_up: false,
            data: Vec::new(),
        };
        for option in &entry.options {
            read.take(entry, option)?;
        }
        Ok(read)
    }

    fn take(&mut self, entry: &Mount, option: &'a str) -> Result<(), String> {
        match option {
            "bind" | "defaults" | "" => return Ok(()),
            "rbind" => self.recursive = true,
            "idmap" => self.map_ids = Some(false),
            "ridmap" => self.map_ids = Some(true),
            "tmpcopyup" => self.copy_up = true,
            _ => {
                if !self.take_attribute(option) && !self.take_propagation(option) {
                    return self.take_data(entry, option);
                }
            }
        }
        Ok(())
    }

    fn take_attribute(&mut self, option: &str) -> bool {
        let find = |name: &str| ATTRIBUTES.iter().find(|(known, ..)| *known == name);
        let (found, all) = match find(option) {
            // `relatime` and `rw` begin with that letter themselves.
            Some(found) => (found, false),
            None => match option.strip_prefix('r').and_then(find) {
                Some(found) => (found, true),
                None => return false,
            },
        };
        let (set, clear) =
            if all { (&mut self.set_all, &mut self.clear_all) } else { (&mut self.set, &mut self.clear) };
        let (_, attribute, on) = found;
        let whole = if attribute.intersects(Attributes::MOUNT_ATTR__ATIME) {
            Attributes::MOUNT_ATTR__ATIME
        } else {
            *attribute
        };
        // The last word holds.
        set.remove(whole);
        clear.remove(whole);
        if *on {
            set.insert(*attribute)
        } else {
            clear.insert(*attribute)
        }
        true
    }

    fn take_propagation(&mut self, option: &str) -> bool {
        let named = |name: &str| {
            Some(match name {
                "private" => Propagation::Private,
                "slave" => Propagation::Slave,
                "shared" => Propagation::Shared,
                "unbindable" => Propagation::Unbindable,
                _ => return None,
            })
        };
        let plain = named(option).map(|kind| (kind, false));
        let found = plain.or_else(|| Some((named(option.strip_prefix('r')?)?, true)));
        self.propagation.extend(found);
        found.is_some()
    }

    fn take_data(&mut self, entry: &Mount, option: &'a str) -> Result<(), String> {
        if entry.is_bind() {
            return Err(format!("mounts: {:?}: a bind mount has no option {option:?}", entry.destination));
        }
        self.data
            .push(option.split_once('=').map_or(FsOption::Flag(option), |(name, value)| FsOption::Value(name, value)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(ToString::to_string).collect();
        Mount { destination: "/d".into(), kind: kind.into(), options, ..Mount::default() }
    }

    #[test]
    fn options_become_attributes() {
        let (ro, exec) = (Attributes::MOUNT_ATTR_RDONLY, Attributes::MOUNT_ATTR_NOEXEC);
        let none = Attributes::empty();
        let atime = Attributes::MOUNT_ATTR__ATIME;
        for (options, set, clear, set_all) in [
            (&["rbind", "ro", "rprivate"][..], ro, none, none),
            (&["ro", "rw"], none, ro, none),
            (&["rro", "exec"], none, exec, ro),
            (&["noexec", "relatime"], exec, atime, none),
            (&["noatime", "strictatime"], Attributes::MOUNT_ATTR_STRICTATIME, none, none),
            (&["rnoexec"], none, none, exec),
        ] {
            let entry = entry("bind", options);
            let read = MountOptions::read(&entry).unwrap();
            assert_eq!((read.set, read.clear, read.set_all), (set, clear, set_all), "{options:?}");
        }
    }

    #[test]
    fn propagation_recursion_and_data() {
        let bind = entry("bind", &["bind", "rslave", "shared", "ridmap"]);
        let read = MountOptions::read(&bind).unwrap();
        assert_eq!(read.propagation, [(Propagation::Slave, true), (Propagation::Shared, false)]);
        assert!(!read.recursive && read.map_ids == Some(true));
        let tmpfs = entry("tmpfs", &["nosuid", "size=1m", "mode=700", "sync", "tmpcopyup"]);
        let read = MountOptions::read(&tmpfs).unwrap();
        assert!(read.copy_up && read.set == Attributes::MOUNT_ATTR_NOSUID);
        assert!(matches!(
            read.data[..],
            [FsOption::Value("size", "1m"), FsOption::Value("mode", "700"), FsOption::Flag("sync")]
        ));
        let said = MountOptions::read(&entry("bind", &["rbind", "size=1m"])).unwrap_err();
        assert!(said.contains("size=1m") && said.contains("/d"), "{said}");
        assert!(known_options().iter().any(|name| name == "rro"));
    }
}
