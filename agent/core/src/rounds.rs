//! Rounds of work on a pod: from what gave cause until all that was begun has ended. They tell how long a node takes.

use std::time::{Duration, Instant};

use crate::lifecycle::Lifecycle;

/// What gave cause to a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The pod is new.
    Create,
    /// Its source changed it, or something that it refers to.
    Update,
    /// The runtime told of it, or it was time to try something again.
    Sync,
    /// It is to end.
    Kill,
    /// No process of it is left, and what it had is taken down.
    Terminated,
}

impl Work {
    /// Its name, as the kubelet's metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Work::Create => "create",
            Work::Update => "update",
            Work::Sync => "sync",
            Work::Kill => "kill",
            Work::Terminated => "terminated",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Round {
    work: Work,
    begun: Instant,
    /// Something was begun.
    busy: bool,
}

/// The round of a pod that is under way.
#[derive(Clone, Debug)]
pub struct Rounds {
    life: Lifecycle,
    round: Option<Round>,
}

impl Default for Rounds {
    fn default() -> Rounds {
        Rounds { life: Lifecycle::Syncing, round: None }
    }
}

impl Rounds {
    /// There is cause to look at the pod. It belongs to the round that is under way, if there is one.
    pub fn begin(&mut self, work: Work, now: Instant) {
        if self.life == Lifecycle::Syncing {
            self.round.get_or_insert(Round { work, begun: now, busy: false });
        }
    }

    /// The pod was looked at: where it is in its life, and whether anything is under way for it. Returns the round that is
    /// over by that. One in which nothing was begun is none; the end of a pod is one round for its processes and one for
    /// what it had, however often they are tried.
    pub fn looked(&mut self, life: Lifecycle, busy: bool, now: Instant) -> Option<(Work, Duration)> {
        let over = if life != self.life {
            self.life = life;
            let work = match life {
                Lifecycle::Syncing | Lifecycle::Finished => None,
                Lifecycle::Terminating => Some(Work::Kill),
                Lifecycle::Terminated => Some(Work::Terminated),
            };
            std::mem::replace(&mut self.round, work.map(|work| Round { work, begun: now, busy: true }))
        } else if life == Lifecycle::Syncing && !busy {
            self.round.take()
        } else {
            self.round.iter_mut().for_each(|round| round.busy |= busy);
            None
        };
        let round = over.filter(|round| round.busy)?;
        Some((round.work, now.duration_since(round.begun)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Cause(Work),
        Look(Lifecycle, bool),
    }

    #[test]
    fn rounds_of_a_life() {
        use Lifecycle::{Finished, Syncing, Terminated, Terminating};
        use Step::{Cause, Look};
        type Told<'a> = &'a [(&'a str, u64)];
        // Each step is a second after the one before.
        let cases: [(&str, &[Step], Told<'_>); 8] = [
            ("nothing to do", &[Cause(Work::Sync), Look(Syncing, false), Look(Syncing, false)], &[]),
            ("no cause", &[Look(Syncing, true), Look(Syncing, false)], &[]),
            ("a start", &[Cause(Work::Create), Look(Syncing, true), Look(Syncing, false)], &[("create", 2)]),
            (
                "causes on the way belong to it",
                &[
                    Cause(Work::Update),
                    Look(Syncing, true),
                    Cause(Work::Sync),
                    Look(Syncing, true),
                    Look(Syncing, false),
                ],
                &[("update", 4)],
            ),
            (
                "the next cause is another round",
                &[
                    Cause(Work::Create),
                    Look(Syncing, true),
                    Look(Syncing, false),
                    Cause(Work::Sync),
                    Look(Syncing, true),
                    Look(Syncing, false),
                ],
                &[("create", 2), ("sync", 2)],
            ),
            (
                "an end breaks off a start",
                &[Cause(Work::Create), Look(Syncing, true), Cause(Work::Update), Look(Terminating, true)],
                &[("create", 3)],
            ),
            (
                "an end, with tries between which nothing is under way",
                &[
                    Cause(Work::Update),
                    Look(Terminating, true),
                    Look(Terminating, false),
                    Cause(Work::Sync),
                    Look(Terminating, true),
                    Look(Terminated, true),
                    Cause(Work::Sync),
                    Look(Finished, false),
                    Cause(Work::Sync),
                    Look(Finished, true),
                    Look(Finished, false),
                ],
                &[("kill", 4), ("terminated", 2)],
            ),
            (
                "nothing ran",
                &[Cause(Work::Create), Look(Terminated, true), Look(Finished, false)],
                &[("terminated", 1)],
            ),
        ];
        let start = Instant::now();
        for (what, steps, want) in cases {
            let mut rounds = Rounds::default();
            let mut over = Vec::new();
            for (second, step) in (0..).zip(steps) {
                let now = start + Duration::from_secs(second);
                match step {
                    Cause(work) => rounds.begin(*work, now),
                    Look(life, busy) => over.extend(rounds.looked(*life, *busy, now)),
                }
            }
            let over: Vec<(&str, u64)> = over.into_iter().map(|(work, took)| (work.as_str(), took.as_secs())).collect();
            assert_eq!(over, want, "{what}");
        }
    }
}
