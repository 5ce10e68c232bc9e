//! The end of all pods because the machine goes down: who ends with whom, how long each has, and when the next are told.
//! Pure: what has ended and how much time is gone come from outside.
//!
//! ```text
//!  lowest priority ──> … ──> highest ──> last words ──> over
//!       each group until its pods hold nothing any more, or its time is over
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::containers;
use crate::memory::Verdict;
use crate::plan::spec_grace_seconds;
use crate::resources::CRITICAL_PRIORITY;

/// status.reason of a pod that ended because of a shutdown (kubelet `nodeShutdownReason`).
pub const SHUTDOWN_REASON: &str = "Terminated";
/// status.message of such a pod, and that of its condition `DisruptionTarget` (kubelet `nodeShutdownMessage`).
pub const SHUTDOWN_MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// After the time of the last group: for pods that used it up to be killed, and for the last statuses to be written.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// The node's word on a pod that it ends because of a shutdown.
pub fn shutdown_verdict() -> Verdict {
    Verdict {
        phase: Some("Failed"),
        reason: SHUTDOWN_REASON.to_owned(),
        message: SHUTDOWN_MESSAGE.to_owned(),
        disruption: true,
    }
}

/// How long pods of a priority and above have, up to the priority of the next such entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPeriod {
    /// The least priority of the group; pods below the least of all belong to the lowest group.
    pub priority: i32,
    /// The group's time in seconds.
    pub seconds: u32,
}

/// How long each group has, the lowest priority first. Without any, a shutdown ends no pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownPeriods(Vec<GroupPeriod>);

impl ShutdownPeriods {
    /// `whole` for all pods, of which the last part is kept for critical ones (`shutdownGracePeriod`,
    /// `shutdownGracePeriodCriticalPods`; whole seconds count). None where `whole` is 0.
    pub fn split(whole: Duration, critical: Duration) -> ShutdownPeriods {
        if whole.is_zero() {
            return ShutdownPeriods::default();
        }
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        ShutdownPeriods(vec![
            GroupPeriod { priority: 0, seconds: seconds(whole.saturating_sub(critical)) },
            GroupPeriod { priority: CRITICAL_PRIORITY, seconds: seconds(critical.min(whole)) },
        ])
    }

    /// One group for each entry (`shutdownGracePeriodByPodPriority`).
    pub fn by_priority(mut groups: Vec<GroupPeriod>) -> ShutdownPeriods {
        groups.sort_by_key(|group| group.priority);
        ShutdownPeriods(groups)
    }

    /// Whether a shutdown ends no pod.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long a shutdown takes at most: all groups one after the other, and the last words.
    pub fn longest(&self) -> Duration {
        self.0.iter().fold(LAST_WORDS, |sum, group| sum.saturating_add(period(group)))
    }

    /// The group of a priority: the last whose own is not above it, else the lowest.
    fn group_of(&self, priority: i32) -> usize {
        self.0.partition_point(|group| group.priority <= priority).saturating_sub(1)
    }
}

fn period(group: &GroupPeriod) -> Duration {
    Duration::from_secs(u64::from(group.seconds))
}

/// A pod that is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// Its uid.
    pub uid: String,
    /// Its name, for people.
    pub name: String,
    /// Its grace in seconds: its own, as far as the time of its group goes.
    pub grace_seconds: i64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShutdownStep {
    /// These pods are to be told to end.
    End(Vec<PodEnd>),
    /// Nothing, until one of the pods holds nothing any more or this much time is gone since the beginning.
    Wait(Duration),
    /// No more. These have been told to end and still hold something.
    Over(Vec<PodEnd>),
}

/// A shutdown under way.
#[derive(Clone, Debug)]
pub struct Shutdown {
    groups: VecDeque<(Duration, Vec<PodEnd>)>,
    told: Vec<PodEnd>,
    /// Where in `told` the group begins that is waited for.
    first: usize,
    /// When its time is over.
    until: Duration,
    last_words: bool,
}

impl Shutdown {
    /// The shutdown of a node that has these pods.
    pub fn new<'a>(periods: &ShutdownPeriods, pods: impl IntoIterator<Item = &'a Pod>) -> Shutdown {
        let mut groups: Vec<(Duration, Vec<PodEnd>)> =
            periods.0.iter().map(|group| (period(group), Vec::new())).collect();
        for pod in pods {
            let priority = containers::spec(pod).and_then(|spec| spec.priority).unwrap_or(0);
            let Some((time, members)) = groups.get_mut(periods.group_of(priority)) else { break };
            let time = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            members.push(PodEnd {
                uid: containers::uid(pod).to_owned(),
                name: containers::display(pod),
                // A pod whose group has no time is killed; the runtime is told so with the least grace there is.
                grace_seconds: spec_grace_seconds(pod).min(time).max(1),
            });
        }
        // Nobody waits for a group without pods.
        let groups = groups.into_iter().filter(|(_, members)| !members.is_empty()).collect();
        Shutdown { groups, told: Vec::new(), first: 0, until: Duration::ZERO, last_words: false }
    }

    /// What comes next, `gone` after the beginning. `holds` tells of a pod (by uid) whether the node still has
    /// processes, volumes or the like of it.
    pub fn step(&mut self, gone: Duration, holds: impl Fn(&str) -> bool) -> ShutdownStep {
        if gone < self.until && self.told[self.first..].iter().any(|pod| holds(&pod.uid)) {
            return ShutdownStep::Wait(self.until);
        }
        if let Some((time, members)) = self.groups.pop_front() {
            self.first = self.told.len();
            self.until = gone.saturating_add(time);
            self.told.extend(members.iter().cloned());
            return ShutdownStep::End(members);
        }
        // Those of earlier groups that have not ended in their time are waited for as well.
        let left: Vec<PodEnd> = self.told.iter().filter(|pod| holds(&pod.uid)).cloned().collect();
        if !self.last_words && !left.is_empty() {
            self.last_words = true;
            self.first = 0;
            self.until = gone.saturating_add(LAST_WORDS);
            return ShutdownStep::Wait(self.until);
        }
        ShutdownStep::Over(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: Option<i32>, grace: Option<i64>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"priority": priority, "terminationGracePeriodSeconds": grace, "containers": [{"name": "c"}]}
        }))
        .unwrap()
    }

    fn split(whole: u64, critical: u64) -> ShutdownPeriods {
        ShutdownPeriods::split(Duration::from_secs(whole), Duration::from_secs(critical))
    }

    fn by_priority(groups: &[(i32, u32)]) -> ShutdownPeriods {
        let group = |(priority, seconds): &(i32, u32)| GroupPeriod { priority: *priority, seconds: *seconds };
        ShutdownPeriods::by_priority(groups.iter().map(group).collect())
    }

    /// Who is told after how many seconds with which grace, when each pod holds out for so many seconds after it was
    /// told; at last when it is over and who is left.
    fn run(periods: &ShutdownPeriods, pods: &[(Pod, u64)]) -> String {
        let mut shutdown = Shutdown::new(periods, pods.iter().map(|(pod, _)| pod));
        let (mut now, mut text) = (Duration::ZERO, String::new());
        let mut ends: Vec<(String, Duration)> = Vec::new();
        loop {
            let holds = |uid: &str| ends.iter().any(|(name, end)| name == uid && *end > now);
            match shutdown.step(now, holds) {
                ShutdownStep::End(group) => {
                    for end in group {
                        text += &format!("{}:{}/{} ", now.as_secs(), end.uid, end.grace_seconds);
                        let (_, lasts) = pods.iter().find(|(pod, _)| containers::uid(pod) == end.uid).unwrap();
                        ends.push((end.uid, now + Duration::from_secs(*lasts)));
                    }
                }
                ShutdownStep::Wait(until) => {
                    let next = ends.iter().map(|(_, end)| *end).filter(|end| *end > now).min();
                    now = next.map_or(until, |end| end.min(until));
                }
                ShutdownStep::Over(left) => {
                    let left: Vec<String> = left.into_iter().map(|pod| pod.uid).collect();
                    return text + &format!("over {} [{}]", now.as_secs(), left.join(" "));
                }
            }
        }
    }

    #[test]
    fn groups_end_one_after_the_other() {
        const CRITICAL: i32 = CRITICAL_PRIORITY;
        let usual = |lasts: u64| (pod("usual", None, Some(60)), lasts);
        let brief = |lasts: u64| (pod("brief", Some(0), Some(5)), lasts);
        let critical = |lasts: u64| (pod("critical", Some(CRITICAL + 1000), Some(60)), lasts);
        let three = [(0, 10), (1000, 20), (CRITICAL, 30)];
        for (what, periods, pods, want) in [
            ("nothing configured", split(0, 0), vec![usual(1)], "over 0 []"),
            ("no pods", split(30, 10), vec![], "over 0 []"),
            (
                "each has its own grace, as far as its group goes",
                split(30, 10),
                vec![usual(3), brief(4), critical(2)],
                "0:usual/20 0:brief/5 4:critical/10 over 6 []",
            ),
            (
                "a group that is not done in time is not waited for",
                split(30, 10),
                vec![usual(22), critical(3)],
                "0:usual/20 20:critical/10 over 23 []",
            ),
            (
                "what used up all its time gets last words",
                split(30, 10),
                vec![usual(1), critical(12)],
                "0:usual/20 1:critical/10 over 13 []",
            ),
            (
                "what hangs is named",
                split(30, 10),
                vec![usual(1000), critical(1000)],
                "0:usual/20 20:critical/10 over 35 [usual critical]",
            ),
            ("a group without pods takes no time", split(30, 10), vec![critical(3)], "0:critical/10 over 3 []"),
            (
                "all time is the usual pods'",
                split(30, 0),
                vec![usual(30), critical(1)],
                "0:usual/30 30:critical/1 over 31 []",
            ),
            (
                "all time is the critical pods'",
                split(30, 30),
                vec![usual(1), critical(30)],
                "0:usual/1 0:critical/30 over 30 []",
            ),
            (
                "entries in any order",
                by_priority(&[three[2], three[0], three[1]]),
                vec![(pod("high", Some(1500), Some(15)), 15), usual(10), critical(1)],
                "0:usual/10 10:high/15 25:critical/30 over 26 []",
            ),
            (
                "the lowest group takes what is below it",
                by_priority(&three[1..]),
                vec![(pod("below", Some(-5), None), 2), (pod("at", Some(1000), Some(0)), 1), critical(1)],
                "0:below/20 0:at/1 2:critical/30 over 3 []",
            ),
        ] {
            assert_eq!(run(&periods, &pods), want, "{what}");
        }
    }

    #[test]
    fn priorities_have_groups() {
        let periods = by_priority(&[(10, 1), (20, 1), (30, 1)]);
        for (priority, want) in
            [(i32::MIN, 0), (9, 0), (10, 0), (19, 0), (20, 1), (21, 1), (29, 1), (30, 2), (31, 2), (i32::MAX, 2)]
        {
            assert_eq!(periods.group_of(priority), want, "{priority}");
        }
    }

    #[test]
    fn the_longest_time_is_known() {
        for (periods, want) in
            [(split(30, 10), 35), (split(1, 0), 6), (by_priority(&[(0, 10), (5, 20), (9, 0)]), 35), (split(0, 0), 5)]
        {
            assert_eq!(periods.longest(), Duration::from_secs(want), "{periods:?}");
        }
        assert!(split(0, 0).is_empty() && !split(1, 0).is_empty());
    }
}
