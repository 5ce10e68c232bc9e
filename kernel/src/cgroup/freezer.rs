//! Freezing a cgroup and letting it go on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{CgroupError, Cgroups, failed, keyed};

/// How long the processes of a cgroup may take to stop.
const FREEZE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

impl Cgroups {
    /// Stops every process of the cgroup and waits until they stand still, or lets them go on.
    ///
    /// # Errors
    /// When there is no freezer, or a process doesn't stop in time; all go on then.
    pub fn freeze(&self, path: &str, frozen: bool) -> Result<(), CgroupError> {
        let (file, value) = match (self, frozen) {
            (Cgroups::V1(_), true) => (self.freezer(path, "freezer.state")?, "FROZEN"),
            (Cgroups::V1(_), false) => (self.freezer(path, "freezer.state")?, "THAWED"),
            (Cgroups::V2(_), frozen) => (self.freezer(path, "cgroup.freeze")?, if frozen { "1" } else { "0" }),
        };
        let write = |value: &str| std::fs::write(&file, value).map_err(|error| failed("write to", &file, error));
        let end = Instant::now() + FREEZE_WAIT;
        write(value)?;
        while self.is_frozen(path) != frozen {
            if Instant::now() > end {
                if frozen {
                    write(if let Cgroups::V1(_) = self { "THAWED" } else { "0" })?;
                }
                let why = format!("its processes have not followed within {} s", FREEZE_WAIT.as_secs());
                return Err(failed("freeze with", &file, std::io::Error::new(std::io::ErrorKind::TimedOut, why)));
            }
            // The kernel of v1 tells nobody; a write brings it one step on.
            std::thread::sleep(LOOK);
            if let Cgroups::V1(_) = self {
                write(value)?;
            }
        }
        Ok(())
    }

    /// Whether all processes of the cgroup stand still.
    #[must_use]
    pub fn is_frozen(&self, path: &str) -> bool {
        match self {
            Cgroups::V1(_) => self.read(path, "freezer", "freezer.state").is_some_and(|text| text.trim() == "FROZEN"),
            Cgroups::V2(_) => {
                self.read(path, "", "cgroup.events").as_deref().and_then(|text| keyed(text, "frozen")) == Some(1)
            }
        }
    }

    fn freezer(&self, path: &str, file: &str) -> Result<PathBuf, CgroupError> {
        match self.folder(path, "freezer")? {
            Some(folder) => Ok(folder.join(file)),
            None => {
                let error = std::io::Error::new(std::io::ErrorKind::Unsupported, "this machine has no freezer");
                Err(failed("freeze", std::path::Path::new(path), error))
            }
        }
    }
}
