//! The life of a pod on the node.
//!
//! ```text
//!  Syncing ──stop──> Terminating ──stopped──> Terminated ──torn down──> Finished
//! ```
//! It never goes back: a pod that comes again has another uid and another life.

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifecycle {
    /// Containers are started and kept as the spec wants them. Volumes, sandbox and probes are at work.
    Syncing,
    /// Containers are being stopped with their grace. Nothing is started; readiness probes go on.
    Terminating,
    /// No process is left. Sandbox, volumes and cgroup are taken down; tried again until done.
    Terminated,
    /// Nothing is held any more but dead containers and logs, which go with the API object.
    Finished,
}

/// What moves a pod on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LifecycleEvent {
    /// The pod is to stop: deleted, gone from its source, refused, evicted, over its deadline, or all work is done.
    Stop,
    /// No container and no sandbox runs.
    Stopped,
    /// Volumes and cgroup are gone.
    TornDown,
}

impl Lifecycle {
    /// All states in order.
    pub const ALL: [Lifecycle; 4] =
        [Lifecycle::Syncing, Lifecycle::Terminating, Lifecycle::Terminated, Lifecycle::Finished];

    /// The state after an event. An event that means nothing in a state leaves it.
    pub fn after(self, event: LifecycleEvent) -> Lifecycle {
        match (self, event) {
            (Lifecycle::Syncing, LifecycleEvent::Stop) => Lifecycle::Terminating,
            (Lifecycle::Terminating, LifecycleEvent::Stopped) => Lifecycle::Terminated,
            (Lifecycle::Terminated, LifecycleEvent::TornDown) => Lifecycle::Finished,
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_event() {
        let mut table = String::new();
        for state in Lifecycle::ALL {
            for event in [LifecycleEvent::Stop, LifecycleEvent::Stopped, LifecycleEvent::TornDown] {
                table += &format!("{state:?} {event:?} {:?}\n", state.after(event));
            }
        }
        assert_eq!(
            table,
            "Syncing Stop Terminating\nSyncing Stopped Syncing\nSyncing TornDown Syncing\n\
             Terminating Stop Terminating\nTerminating Stopped Terminated\nTerminating TornDown Terminating\n\
             Terminated Stop Terminated\nTerminated Stopped Terminated\nTerminated TornDown Finished\n\
             Finished Stop Finished\nFinished Stopped Finished\nFinished TornDown Finished\n"
        );
    }
}
