//! What CPU time the bench and everything that it starts have taken, and nobody else on the machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The bench is in a cgroup of its own, and so are the daemons that it starts; pods are in cgroups that these make.
pub struct Account {
    /// The hierarchy that counts CPU time.
    root: PathBuf,
    own: PathBuf,
    /// Cgroups of others.
    others: BTreeSet<PathBuf>,
}

impl Account {
    /// Moves the bench into its cgroup.
    pub fn open() -> Account {
        let v1 = Path::new("/sys/fs/cgroup/cpuacct");
        let root = if v1.exists() { v1.to_path_buf() } else { PathBuf::from("/sys/fs/cgroup") };
        let others = folders(&root).collect();
        let own = root.join(format!("orlop-bench-{}", std::process::id()));
        std::fs::create_dir(&own).expect("make a cgroup for the bench");
        let account = Account { root, own, others };
        account.enter(&account.own);
        account
    }

    fn enter(&self, cgroup: &Path) {
        std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
            .expect("move the bench to a cgroup");
    }

    /// Seconds of CPU time that were taken so far. `/proc/stat` counts by the tick, too coarse for what takes less than
    /// one; cgroups count each nanosecond.
    pub fn seconds(&self) -> f64 {
        folders(&self.root).filter(|cgroup| !self.others.contains(cgroup)).map(|cgroup| taken(&cgroup)).sum()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.enter(&self.root);
        let _ = std::fs::remove_dir(&self.own);
    }
}

fn folders(root: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(root).expect("list the cgroups").flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Seconds of CPU time of a cgroup and those below it; none of one that is gone.
fn taken(cgroup: &Path) -> f64 {
    if let Ok(text) = std::fs::read_to_string(cgroup.join("cpuacct.usage")) {
        return text.trim().parse::<f64>().expect("a number in cpuacct.usage") / 1e9;
    }
    let text = std::fs::read_to_string(cgroup.join("cpu.stat")).unwrap_or_default();
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    usage.and_then(|usage| usage.parse::<f64>().ok()).unwrap_or_default() / 1e6
}
