//! Which images to remove: by disk use above a threshold, and by age (kubelet image garbage collection).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

/// When images are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// Use of the image file system that starts a collection, in percent; 100 never does.
    pub high_percent: i64,
    /// Use that a collection goes down to, in percent.
    pub low_percent: i64,
    /// Images known for less than this stay.
    pub age_min: SignedDuration,
    /// Images unused for longer than this go, whatever the disk says; none keeps them.
    pub unused_max: Option<SignedDuration>,
}

/// The kubelet's defaults: 85 %, 80 %, 2 minutes, no maximum.
impl Default for ImagePolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: SignedDuration::from_mins(2), unused_max: None }
    }
}

/// An image as the runtime lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenImage {
    /// Image id.
    pub id: String,
    /// Size in bytes.
    pub size_bytes: i64,
    /// The runtime says: never remove.
    pub pinned: bool,
}

/// The image file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes in all.
    pub capacity_bytes: i64,
    /// Bytes free.
    pub available_bytes: i64,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePlan {
    /// Images to remove, in this order.
    pub remove: Vec<String>,
    /// Bytes that should become free; 0 when the disk is fine.
    pub wanted_bytes: i64,
    /// Bytes that the removals for space should free. Less than wanted: `FreeDiskSpaceFailed`.
    pub found_bytes: i64,
}

#[derive(Clone, Debug)]
struct Record {
    size_bytes: i64,
    pinned: bool,
    first_seen: Timestamp,
    last_used: Timestamp,
    in_use: bool,
}

/// What is known of images over time. Lost at a restart, which only makes images look fresher or unused since the start.
#[derive(Clone, Debug, Default)]
pub struct ImageLedger {
    images: BTreeMap<String, Record>,
    started: bool,
}

impl ImageLedger {
    /// Takes in a list of images and the ids that containers use now.
    pub fn observe(&mut self, images: &[SeenImage], used: &BTreeSet<String>, now: Timestamp) {
        // What was there before us counts as old: its true age is unknown.
        let first_seen = if self.started { now } else { Timestamp::UNIX_EPOCH };
        let used_since = now;
        self.started = true;
        let listed: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.images.retain(|id, _| listed.contains(id.as_str()));
        for image in images {
            let record = self.images.entry(image.id.clone()).or_insert(Record {
                size_bytes: 0,
                pinned: false,
                first_seen,
                last_used: used_since,
                in_use: false,
            });
            record.size_bytes = image.size_bytes;
            record.pinned = image.pinned;
            record.in_use = used.contains(&image.id);
            if record.in_use {
                record.last_used = now;
            }
        }
    }

    /// What to remove at the periodic collection.
    pub fn plan(&self, disk: DiskUse, policy: &ImagePolicy, now: Timestamp) -> ImagePlan {
        let mut plan = ImagePlan::default();
        if let Some(unused_max) = policy.unused_max {
            let old = self
                .candidates(policy, now)
                .into_iter()
                .filter(|(_, record)| now.duration_since(record.last_used) > unused_max);
            plan.remove = old.map(|(id, _)| id.clone()).collect();
        }
        if disk.capacity_bytes <= 0 {
            return plan;
        }
        let used_percent =
            100 - (i128::from(disk.available_bytes.max(0)) * 100 / i128::from(disk.capacity_bytes)) as i64;
        if policy.high_percent < 100 && used_percent >= policy.high_percent {
            let free = (i128::from(disk.capacity_bytes) * i128::from(100 - policy.low_percent) / 100) as i64;
            plan.wanted_bytes = (free - disk.available_bytes).max(0);
            self.free(&mut plan, policy, now);
        }
        plan
    }

    /// Every image that may go, for reclaiming under disk pressure; age does not protect.
    pub fn plan_all(&self, now: Timestamp) -> ImagePlan {
        let policy = ImagePolicy { age_min: SignedDuration::ZERO, ..ImagePolicy::default() };
        let mut plan = ImagePlan { wanted_bytes: i64::MAX, ..ImagePlan::default() };
        self.free(&mut plan, &policy, now);
        plan
    }

    /// Images that may go: least recently used first, then longest known.
    fn candidates(&self, policy: &ImagePolicy, now: Timestamp) -> Vec<(&String, &Record)> {
        let free = |record: &Record| {
            !record.in_use && !record.pinned && now.duration_since(record.first_seen) >= policy.age_min
        };
        let mut found: Vec<_> = self.images.iter().filter(|(_, record)| free(record)).collect();
        found.sort_by_key(|(_, record)| (record.last_used, record.first_seen));
        found
    }

    fn free(&self, plan: &mut ImagePlan, policy: &ImagePolicy, now: Timestamp) {
        let already: BTreeSet<String> = plan.remove.iter().cloned().collect();
        plan.found_bytes =
            self.images.iter().filter(|(id, _)| already.contains(*id)).map(|(_, record)| record.size_bytes).sum();
        for (id, record) in self.candidates(policy, now) {
            if plan.found_bytes >= plan.wanted_bytes {
                return;
            }
            if !already.contains(id) {
                plan.remove.push(id.clone());
                plan.found_bytes = plan.found_bytes.saturating_add(record.size_bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn image(id: &str, size_bytes: i64) -> SeenImage {
        SeenImage { id: id.into(), size_bytes, pinned: id == "pinned" }
    }

    /// Images a (used last at 10), b (at 20), c (in use), pinned, and young (seen at 990); now is 1000.
    fn ledger() -> ImageLedger {
        let mut ledger = ImageLedger::default();
        let mut images = vec![image("a", 100), image("b", 100), image("c", 100), image("pinned", 100)];
        let used = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        ledger.observe(&images, &used(&["a", "b", "c"]), at(10));
        ledger.observe(&images, &used(&["b", "c"]), at(20));
        images.push(image("young", 100));
        ledger.observe(&images, &used(&["c"]), at(990));
        ledger
    }

    #[test]
    fn thresholds_decide_how_much_goes() {
        let disk = |available| DiskUse { capacity_bytes: 1000, available_bytes: available };
        let table: [(&str, i64, i64, &[&str], i64); 5] = [
            ("below the threshold", 160, 85, &[], 0),
            ("at the threshold", 150, 85, &["a"], 50),
            ("well above", 50, 85, &["a", "b"], 150),
            ("more than there is", 0, 85, &["a", "b"], 200),
            ("switched off", 0, 100, &[], 0),
        ];
        for (name, available, high_percent, remove, wanted) in table {
            let plan =
                ledger().plan(disk(available), &ImagePolicy { high_percent, ..ImagePolicy::default() }, at(1000));
            assert_eq!(
                (plan.remove.as_slice(), plan.wanted_bytes),
                (remove.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>().as_slice(), wanted),
                "{name}"
            );
            assert_eq!(plan.found_bytes, remove.len() as i64 * 100, "{name}");
        }
    }

    #[test]
    fn pressure_takes_the_young_but_never_the_used_or_pinned() {
        assert_eq!(ledger().plan_all(at(1000)).remove, ["a", "b", "young"]);
    }

    #[test]
    fn unused_images_go_by_age() {
        let policy = ImagePolicy { unused_max: Some(SignedDuration::from_secs(985)), ..ImagePolicy::default() };
        let fine = DiskUse { capacity_bytes: 1000, available_bytes: 900 };
        assert_eq!(ledger().plan(fine, &policy, at(1000)).remove, ["a"]);
        let full = DiskUse { capacity_bytes: 1000, available_bytes: 50 };
        assert_eq!(ledger().plan(full, &policy, at(1000)).remove, ["a", "b"], "what goes by age counts");
    }

    #[test]
    fn removed_images_are_forgotten_and_odd_disks_ask_for_nothing() {
        let mut ledger = ledger();
        ledger.observe(&[], &BTreeSet::new(), at(1001));
        assert_eq!(ledger.plan_all(at(2000)), ImagePlan { wanted_bytes: i64::MAX, ..ImagePlan::default() });
        assert_eq!(
            ledger.plan(DiskUse { capacity_bytes: 0, available_bytes: 0 }, &ImagePolicy::default(), at(2000)),
            ImagePlan::default()
        );
    }
}
