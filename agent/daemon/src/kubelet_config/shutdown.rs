//! How long pods have to end when the machine goes down: three settings, of which only two go together.

use std::time::Duration;

use orlop_agent_core::shutdown::{GroupPeriod, ShutdownPeriods};
use serde::{Deserialize, Serialize};

use super::KubeletConfiguration;
use crate::duration::GoDuration;

/// An entry of `shutdownGracePeriodByPodPriority`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PriorityGracePeriod {
    /// Pods of this priority and above, up to the next entry.
    pub priority: i32,
    /// Their time in seconds.
    pub shutdown_grace_period_seconds: i64,
}

/// The fields' names, for errors.
const WHOLE: &str = "shutdownGracePeriod";
const CRITICAL: &str = "shutdownGracePeriodCriticalPods";
const BY_PRIORITY: &str = "shutdownGracePeriodByPodPriority";

impl KubeletConfiguration {
    /// How long pods have to end when the machine goes down. Empty where none are to be ended.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn shutdown_periods(&self) -> Result<ShutdownPeriods, String> {
        let (whole, critical) = (self.shutdown_grace_period, self.shutdown_grace_period_critical_pods);
        let groups = &self.shutdown_grace_period_by_pod_priority;
        if !groups.is_empty() && whole.max(critical) > GoDuration::default() {
            return Err(format!("{BY_PRIORITY} and {WHOLE}: give one of them, not both"));
        }
        for (field, period) in [(WHOLE, whole), (CRITICAL, critical)] {
            if !period.0.is_zero() && period.0 < Duration::from_secs(1) {
                return Err(format!("{field}: {period} is neither 0 nor at least 1s"));
            }
        }
        if critical > whole {
            return Err(format!("{CRITICAL}: {critical} is more than {WHOLE}, which is {whole}"));
        }
        if groups.is_empty() {
            return Ok(ShutdownPeriods::split(whole.0, critical.0));
        }
        let mut periods = Vec::with_capacity(groups.len());
        for PriorityGracePeriod { priority, shutdown_grace_period_seconds: seconds } in groups {
            let seconds = u32::try_from(*seconds)
                .map_err(|_| format!("{BY_PRIORITY}: {seconds} s for priority {priority} is no period"))?;
            if periods.iter().any(|known: &GroupPeriod| known.priority == *priority) {
                return Err(format!("{BY_PRIORITY}: there are two entries for priority {priority}"));
            }
            periods.push(GroupPeriod { priority: *priority, seconds });
        }
        Ok(ShutdownPeriods::by_priority(periods))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_config;

    #[test]
    fn periods_are_checked_as_by_the_kubelet() {
        let split = |whole, critical| ShutdownPeriods::split(Duration::from_secs(whole), Duration::from_secs(critical));
        let group = |priority, seconds| GroupPeriod { priority, seconds };
        for (fields, want) in [
            ("", Ok(split(0, 0))),
            ("shutdownGracePeriod: 0s", Ok(split(0, 0))),
            ("shutdownGracePeriod: 30s", Ok(split(30, 0))),
            ("shutdownGracePeriod: 1m\nshutdownGracePeriodCriticalPods: 10s", Ok(split(60, 10))),
            ("shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 10s", Ok(split(10, 10))),
            ("shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 11s", Err(CRITICAL)),
            ("shutdownGracePeriodCriticalPods: 10s", Err(CRITICAL)),
            ("shutdownGracePeriod: 900ms", Err("shutdownGracePeriod:")),
            ("shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 1ms", Err(CRITICAL)),
            ("shutdownGracePeriod: soon", Err("shutdownGracePeriod:")),
            (
                "shutdownGracePeriodByPodPriority: [{priority: 5, shutdownGracePeriodSeconds: 7}, {priority: 0}]",
                Ok(ShutdownPeriods::by_priority(vec![group(0, 0), group(5, 7)])),
            ),
            ("shutdownGracePeriodByPodPriority: [{shutdownGracePeriodSeconds: -1}]", Err("-1 s for priority 0")),
            ("shutdownGracePeriodByPodPriority: [{priority: 1}, {priority: 1}]", Err("two entries for priority 1")),
            ("shutdownGracePeriodByPodPriority: [{priority: 1}]\nshutdownGracePeriod: 1s", Err("not both")),
        ] {
            let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}\n");
            match (parse_config(&text).and_then(|loaded| loaded.config.shutdown_periods()), want) {
                (Ok(found), Ok(want)) => assert_eq!(found, want, "{fields}"),
                (Err(error), Err(word)) => assert!(error.contains(word), "{fields}: {error}"),
                (found, want) => panic!("{fields}: {found:?}, not {want:?}"),
            }
        }
    }
}
