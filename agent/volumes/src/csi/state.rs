//! The life of a driver's volume in a pod, as far as the agent knows it.
//!
//! ```text
//!              Staged               Published
//!  Unmounted ────────> Staged ─────────────────> Published
//!      ^  ^  Unstaged    │  ^    Unpublished        │
//!      │  └──────────────┘  └───────────────────────┘
//!      │ Unstaged                  unclear ends, records of an earlier run
//!      └──────────── Uncertain <──────────────────── any
//! ```

/// What is known of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum VolumeState {
    /// Nothing has been done. Set-up stages and publishes; a refusal leaves nothing to undo.
    #[default]
    Unmounted,
    /// It is on the node, not in the pod. Set-up publishes; take-down unstages.
    Staged,
    /// It is in the pod. Set-up publishes again only where the driver wants it; take-down unpublishes and unstages.
    Published,
    /// Something may have been done: a call ended unclear, or an earlier run of the agent did it. Set-up does all
    /// again, which drivers must stand; take-down undoes all.
    Uncertain,
}

/// What has happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum VolumeEvent {
    /// A record of it was found on disk.
    Recovered,
    /// The driver has staged it, or it needs no staging.
    Staged,
    /// The driver has published it.
    Published,
    /// The driver has refused for good.
    Refused,
    /// A call has ended without a clear answer.
    Unclear,
    /// The driver has unpublished it.
    Unpublished,
    /// The driver has unstaged it.
    Unstaged,
}

impl VolumeState {
    /// The state after an event.
    pub(crate) fn after(self, event: VolumeEvent) -> VolumeState {
        use VolumeEvent as E;
        use VolumeState as S;
        match (self, event) {
            (S::Unmounted, E::Recovered) => S::Uncertain,
            (state, E::Recovered | E::Refused) => state,
            // A volume that is in the pod stays there while its driver is told of the pod again.
            (S::Published, E::Staged | E::Unclear) => S::Published,
            (_, E::Staged | E::Unpublished) => S::Staged,
            (_, E::Published) => S::Published,
            (_, E::Unclear) => S::Uncertain,
            (_, E::Unstaged) => S::Unmounted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_meets_every_event() {
        use VolumeEvent as E;
        use VolumeState as S;
        let events = [E::Recovered, E::Staged, E::Published, E::Refused, E::Unclear, E::Unpublished, E::Unstaged];
        for (state, want) in [
            (
                S::Unmounted,
                [S::Uncertain, S::Staged, S::Published, S::Unmounted, S::Uncertain, S::Staged, S::Unmounted],
            ),
            (S::Staged, [S::Staged, S::Staged, S::Published, S::Staged, S::Uncertain, S::Staged, S::Unmounted]),
            (
                S::Published,
                [S::Published, S::Published, S::Published, S::Published, S::Published, S::Staged, S::Unmounted],
            ),
            (
                S::Uncertain,
                [S::Uncertain, S::Staged, S::Published, S::Uncertain, S::Uncertain, S::Staged, S::Unmounted],
            ),
        ] {
            assert_eq!(events.map(|event| state.after(event)), want, "{state:?}");
        }
    }
}
