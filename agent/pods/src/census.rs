//! How many pods the workers have, by where they are in their life and who wants them: the kubelet's "working pods".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orlop_agent_core::lifecycle::Lifecycle;

/// Lives that are told apart; a pod that has ended in full is as one whose things are taken down.
const LIVES: [&str; 3] = ["sync", "terminating", "terminated"];
/// Who wants a pod, and whether it is static: nobody knows that of what was found in the runtime or on disk.
const WANTED: [(&str, &str); 5] =
    [("desired", ""), ("desired", "true"), ("orphan", ""), ("orphan", "true"), ("runtime_only", "unknown")];

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub life: Lifecycle,
    /// Its source has it no more.
    pub gone: bool,
    /// No source has ever told of it.
    pub orphan: bool,
    pub is_static: bool,
}

impl Standing {
    fn index(self) -> usize {
        let wanted = match (self.orphan, self.gone) {
            (true, _) => 4,
            (false, gone) => 2 * usize::from(gone) + usize::from(self.is_static),
        };
        let life = match self.life {
            Lifecycle::Syncing => 0,
            Lifecycle::Terminating => 1,
            Lifecycle::Terminated | Lifecycle::Finished => 2,
        };
        life * WANTED.len() + wanted
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Census {
    counts: [AtomicU64; LIVES.len() * WANTED.len()],
}

impl Census {
    /// The counts with their labels: lifecycle, config, static.
    pub(crate) fn counts(&self) -> impl Iterator<Item = ([&'static str; 3], u64)> {
        let labels =
            LIVES.iter().flat_map(|life| WANTED.iter().map(move |(wanted, is_static)| [life, wanted, is_static]));
        labels
            .map(|labels| labels.map(|label| *label))
            .zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// How many pods their sources have: those of the API and static ones.
    pub(crate) fn desired(&self) -> [u64; 2] {
        ["", "true"].map(|is_static| {
            let wanted = |labels: [&str; 3]| labels[1] == "desired" && labels[2] == is_static;
            self.counts().filter(|(labels, _)| wanted(*labels)).map(|(_, count)| count).sum()
        })
    }
}

/// The place of one pod in the counts; dropped, it is counted no more.
#[derive(Debug)]
pub(crate) struct Place {
    census: Arc<Census>,
    index: Option<usize>,
}

impl Place {
    pub(crate) fn new(census: Arc<Census>) -> Place {
        Place { census, index: None }
    }

    /// The pod stands there now.
    pub(crate) fn take(&mut self, standing: Standing) {
        let index = standing.index();
        if self.index != Some(index) {
            self.leave();
            self.census.counts[index].fetch_add(1, Ordering::Relaxed);
            self.index = Some(index);
        }
    }

    fn leave(&mut self) {
        if let Some(index) = self.index.take() {
            self.census.counts[index].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_standing_has_its_labels() {
        for life in Lifecycle::ALL {
            for (gone, orphan, is_static, wanted) in [
                (false, false, false, ("desired", "")),
                (false, false, true, ("desired", "true")),
                (true, false, false, ("orphan", "")),
                (true, false, true, ("orphan", "true")),
                (true, true, false, ("runtime_only", "unknown")),
                (false, true, true, ("runtime_only", "unknown")),
            ] {
                let census = Arc::new(Census::default());
                let mut place = Place::new(census.clone());
                place.take(Standing { life: Lifecycle::Syncing, gone: false, orphan: false, is_static: false });
                place.take(Standing { life, gone, orphan, is_static });
                let name = match life {
                    Lifecycle::Syncing => "sync",
                    Lifecycle::Terminating => "terminating",
                    Lifecycle::Terminated | Lifecycle::Finished => "terminated",
                };
                let counted: Vec<_> = census.counts().filter(|(_, count)| *count > 0).collect();
                assert_eq!(counted, [([name, wanted.0, wanted.1], 1)]);
                let desired = [("desired", ""), ("desired", "true")].map(|kind| u64::from(kind == wanted));
                assert_eq!(census.desired(), desired);
                drop(place);
                assert!(census.counts().all(|(_, count)| count == 0));
            }
        }
    }
}
