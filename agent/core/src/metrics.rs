//! Counts of what the agent does, in the text that Prometheus reads. Who counts names a [`Metric`] and its labels; all
//! series live in one register, which grows to a bound and no further.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod names;

/// Most series of one metric; what would be more is not counted.
const SERIES_MAX: usize = 4096;
/// Longest value of a label in bytes; what is longer is cut.
const LABEL_MAX: usize = 256;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It is as it is now.
    Gauge,
    /// Observations, counted by these upper bounds.
    Histogram(&'static [f64]),
}

/// A metric by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name, as dashboards know it.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
}

#[derive(Clone, Debug)]
enum Value {
    Number(f64),
    /// Observations at or below each bound, their number and sum.
    Observations {
        counts: Vec<u64>,
        all: u64,
        sum: f64,
    },
}

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    /// By the values of the labels, in order: one that is there is found without a copy of them.
    series: Vec<(Vec<String>, Value)>,
}

impl Family {
    fn new(metric: &'static Metric) -> Family {
        let mut family = Family { metric, series: Vec::new() };
        if metric.labels.is_empty() {
            // What has no labels is there before it is first counted.
            family.series(&[]);
        }
        family
    }

    fn series(&mut self, labels: &[&str]) -> Option<&mut Value> {
        debug_assert_eq!(labels.len(), self.metric.labels.len(), "labels of {}", self.metric.name);
        let key = || labels.iter().map(|label| &label[..label.floor_char_boundary(LABEL_MAX)]);
        let place = match self.series.binary_search_by(|(known, _)| known.iter().map(String::as_str).cmp(key())) {
            Ok(place) => place,
            Err(_) if self.series.len() >= SERIES_MAX => return None,
            Err(place) => {
                let fresh = match self.metric.kind {
                    MetricKind::Counter | MetricKind::Gauge => Value::Number(0.0),
                    MetricKind::Histogram(bounds) => {
                        Value::Observations { counts: vec![0; bounds.len()], all: 0, sum: 0.0 }
                    }
                };
                self.series.insert(place, (key().map(str::to_owned).collect(), fresh));
                place
            }
        };
        Some(&mut self.series[place].1)
    }
}

/// The register of all series.
#[derive(Debug)]
pub struct Metrics {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let families = names::ALL.iter().map(|metric| (metric.name, Family::new(metric))).collect();
        Metrics { families: Mutex::new(families) }
    }
}

impl Metrics {
    fn families(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        // Each series is whole at any time.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, metric: &'static Metric, labels: &[&str], change: impl FnOnce(&mut Value)) {
        let mut families = self.families();
        let family = families.entry(metric.name).or_insert_with(|| Family::new(metric));
        if let Some(value) = family.series(labels) {
            change(value);
        }
    }

    /// Counts one.
    pub fn count(&self, metric: &'static Metric, labels: &[&str]) {
        self.add(metric, labels, 1);
    }

    /// Counts several.
    pub fn add(&self, metric: &'static Metric, labels: &[&str], count: u64) {
        self.change(metric, labels, |value| {
            if let Value::Number(number) = value {
                *number += count as f64;
            }
        });
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &'static Metric, labels: &[&str], now: f64) {
        self.change(metric, labels, |value| *value = Value::Number(now));
    }

    /// Takes an observation into a histogram: seconds, unless its name says otherwise.
    pub fn observe(&self, metric: &'static Metric, labels: &[&str], observed: f64) {
        let MetricKind::Histogram(bounds) = metric.kind else { return };
        self.change(metric, labels, |value| {
            if let Value::Observations { counts, all, sum } = value {
                for (bound, count) in bounds.iter().zip(counts) {
                    *count += u64::from(observed <= *bound);
                }
                *all += 1;
                *sum += observed;
            }
        });
    }

    /// Removes all series of a metric that have these values of these labels.
    pub fn forget(&self, metric: &'static Metric, labels: &[(&str, &str)]) {
        if let Some(family) = self.families().get_mut(metric.name) {
            let place = |name: &str| metric.labels.iter().position(|label| *label == name);
            family.series.retain(|(key, _)| {
                !labels.iter().all(|(name, value)| place(name).is_some_and(|place| key[place] == *value))
            });
        }
    }

    /// The metrics that `wanted` chooses, as text.
    pub fn text(&self, wanted: impl Fn(&Metric) -> bool) -> String {
        let mut out = String::new();
        for Family { metric, series } in self.families().values().filter(|family| wanted(family.metric)) {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram(_) => "histogram",
            };
            let name = metric.name;
            // Writing to a string fails never.
            let _ = write!(out, "# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help);
            for (key, value) in series {
                write_series(&mut out, metric, key, value);
            }
        }
        out
    }
}

fn write_series(out: &mut String, metric: &Metric, key: &[String], value: &Value) {
    let labels = |bound: Option<&str>| {
        let own = metric.labels.iter().zip(key).map(|(label, value)| format!("{label}=\"{}\"", escape(value)));
        let all: Vec<String> = own.chain(bound.map(|bound| format!("le=\"{bound}\""))).collect();
        if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
    };
    let name = metric.name;
    let _ = match (value, metric.kind) {
        (Value::Observations { counts, all, sum }, MetricKind::Histogram(bounds)) => {
            for (bound, count) in bounds.iter().zip(counts) {
                let _ = writeln!(out, "{name}_bucket{} {count}", labels(Some(&bound.to_string())));
            }
            let (last, own) = (labels(Some("+Inf")), labels(None));
            write!(out, "{name}_bucket{last} {all}\n{name}_sum{own} {sum}\n{name}_count{own} {all}\n")
        }
        (Value::Number(number), _) => writeln!(out, "{name}{} {number}", labels(None)),
        _ => Ok(()),
    };
}

/// A value of a label as the text has it.
pub fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    static ENDS: Metric =
        Metric { name: "ends_total", help: "Ends.", kind: MetricKind::Counter, labels: &["how", "pod"] };
    static SECONDS: Metric =
        Metric { name: "seconds", help: "Time.", kind: MetricKind::Histogram(&[0.5, 2.0]), labels: &["who"] };

    #[test]
    fn what_is_counted_is_prometheus_text() {
        let metrics = Metrics::default();
        metrics.count(&ENDS, &["well", "a\"b\\\n"]);
        metrics.add(&ENDS, &["well", "a\"b\\\n"], 2);
        metrics.count(&ENDS, &["badly", "p"]);
        for seconds in [0.25, 0.5, 1.0, 4.0] {
            metrics.observe(&SECONDS, &["me"], seconds);
        }
        let text = metrics.text(|metric| [ENDS.name, SECONDS.name].contains(&metric.name));
        let want = "# HELP ends_total Ends.\n# TYPE ends_total counter\nends_total{how=\"badly\",pod=\"p\"} 1\n\
            ends_total{how=\"well\",pod=\"a\\\"b\\\\\\n\"} 3\n# HELP seconds Time.\n# TYPE seconds histogram\n\
            seconds_bucket{who=\"me\",le=\"0.5\"} 2\nseconds_bucket{who=\"me\",le=\"2\"} 3\n\
            seconds_bucket{who=\"me\",le=\"+Inf\"} 4\nseconds_sum{who=\"me\"} 5.75\nseconds_count{who=\"me\"} 4\n";
        assert_eq!(text, want);
        metrics.forget(&ENDS, &[("pod", "p")]);
        metrics.forget(&ENDS, &[("pod", "p"), ("how", "well")]);
        let text = metrics.text(|metric| metric.name == ENDS.name);
        assert!(!text.contains("badly") && text.contains("well"), "{text}");
    }

    #[test]
    fn a_metric_has_a_bound_and_one_without_labels_is_there_from_the_start() {
        let metrics = Metrics::default();
        let long = "é".repeat(LABEL_MAX);
        metrics.count(&ENDS, &["long", &long]);
        for number in 0..2 * SERIES_MAX {
            metrics.count(&ENDS, &["many", &number.to_string()]);
        }
        let text = metrics.text(|metric| metric.name == ENDS.name);
        assert_eq!(text.lines().count(), SERIES_MAX + 2);
        assert!(text.lines().all(|line| line.len() < LABEL_MAX + 60), "labels are cut");
        let text = metrics.text(|metric| metric.name == names::STARTED_PODS.name);
        assert!(text.ends_with("kubelet_started_pods_total 0\n"), "{text}");
    }

    #[test]
    fn names_are_told_apart() {
        let metrics = Metrics::default();
        assert_eq!(metrics.families().len(), names::ALL.len());
    }
}
