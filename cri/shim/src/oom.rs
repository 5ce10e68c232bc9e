//! Whether the out-of-memory killer struck in a container that has ended.

use nix::sys::signal::Signal;
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::cgroup::unit::Scope;

/// What is known of kills in the pod.
///
/// systemd takes a scope's cgroup away as soon as it is empty, and may be faster than the look at it. Then the count of the
/// cgroup above tells: it has grown since the last look when a container of the pod was struck, and one that was ended by
/// SIGKILL just now is the one.
pub struct OomKills {
    /// The count of the cgroup above, at the last look.
    above: u64,
}

impl OomKills {
    /// Begins with what was there before.
    pub fn begin(cgroups: &Cgroups, path: &str) -> OomKills {
        OomKills { above: above(cgroups, path) }
    }

    /// Looks at the cgroup of a container whose first process has ended.
    pub fn struck(&mut self, cgroups: &Cgroups, path: &str, exit_code: i32) -> bool {
        let own = cgroups.oom_kills(path);
        if Scope::at(path).is_none() {
            return own.unwrap_or(0) > 0;
        }
        let before = std::mem::replace(&mut self.above, above(cgroups, path));
        own.map_or(exit_code == 128 + Signal::SIGKILL as i32 && self.above > before, |kills| kills > 0)
    }
}

fn above(cgroups: &Cgroups, path: &str) -> u64 {
    path.rsplit_once('/').and_then(|(above, _)| cgroups.oom_kills(above)).unwrap_or(0)
}
