//! Ids for pods with a user namespace of their own (`hostUsers: false`): which part of the node's ids a pod gets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Fewest ids of a pod, and what its number of ids is a multiple of (kubelet `userNsUnitLength`).
pub const UNIT: u32 = 65_536;

/// The ids that a node gives to pods, in equal ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdSpace {
    first: u32,
    ranges: u32,
    per_pod: u32,
}

impl Default for IdSpace {
    /// The kubelet's without configuration: all ids but the first 65536, 65536 for each pod.
    fn default() -> Self {
        IdSpace { first: UNIT, ranges: u32::MAX / UNIT, per_pod: UNIT }
    }
}

impl IdSpace {
    /// All ids of the machine but the first `per_pod`.
    ///
    /// # Errors
    /// In words, when that is not enough for `max_pods`.
    pub fn of_machine(per_pod: u32, max_pods: i64) -> Result<IdSpace, String> {
        IdSpace::new(per_pod, (1 << 32) - u64::from(per_pod), per_pod, max_pods)
    }

    /// `length` ids from `first` on, `per_pod` for each pod.
    ///
    /// # Errors
    /// In words, when they can't be given to `max_pods` pods in ranges that begin at a multiple of their length, the
    /// machine's root apart.
    pub fn new(first: u32, length: u64, per_pod: u32, max_pods: i64) -> Result<IdSpace, String> {
        if per_pod == 0 || !per_pod.is_multiple_of(UNIT) {
            return Err(format!("{per_pod} ids for each pod are not a multiple of {UNIT}"));
        }
        if first < per_pod || !first.is_multiple_of(per_pod) {
            return Err(format!("the first id {first} is not a multiple of {per_pod}, the ids of a pod"));
        }
        if !length.is_multiple_of(u64::from(per_pod)) || u64::from(first) + length > 1 << 32 {
            return Err(format!("{length} ids from {first} on are not made of ranges of {per_pod}"));
        }
        let ranges = length / u64::from(per_pod);
        if (ranges as i64) < max_pods {
            return Err(format!("{length} ids are enough for {ranges} pods only, and maxPods is {max_pods}"));
        }
        Ok(IdSpace { first, ranges: ranges as u32, per_pod })
    }

    /// Reads what `getsubids` prints: one line, number, user, first id and count.
    ///
    /// # Errors
    /// In words.
    pub fn parse_subids(text: &str) -> Result<(u32, u64), String> {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let [line] = lines[..] else {
            return Err(format!("getsubids told of {} ranges of ids; exactly one is needed", lines.len()));
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers = match words[..] {
            [_, _, first, length] => first.parse().ok().zip(length.parse().ok()),
            _ => None,
        };
        numbers.ok_or_else(|| format!("getsubids printed {line:?}, which is not number, user, first id and count"))
    }
}

/// Ids of a pod: `length` of the container, from 0 on, are those from `host_id` on of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// First id of the machine.
    pub host_id: u32,
    /// First id in the container: 0.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// The file of a pod, as a kubelet writes it (`pods/<uid>/userns`).
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MappingFile {
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
}

impl IdMapping {
    /// The text of a pod's file.
    pub fn to_file(self) -> String {
        let file = MappingFile { uid_mappings: vec![self], gid_mappings: vec![self] };
        serde_json::to_string(&file).unwrap_or_default()
    }

    /// Reads the text of a pod's file.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn from_file(text: &str) -> Result<IdMapping, String> {
        let file: MappingFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match (&file.uid_mappings[..], &file.gid_mappings[..]) {
            ([users], [groups]) if users == groups && users.container_id == 0 => Ok(*users),
            ([users], [groups]) if users == groups => Err("uidMappings[0].containerId: must be 0".to_owned()),
            _ => Err("uidMappings and gidMappings: must be the same single range".to_owned()),
        }
    }
}

/// Which pod has which range.
#[derive(Clone, Debug, Default)]
pub struct IdRanges {
    space: IdSpace,
    pods: BTreeMap<u32, String>,
}

impl IdRanges {
    /// All ranges free.
    pub fn new(space: IdSpace) -> IdRanges {
        IdRanges { space, pods: BTreeMap::new() }
    }

    /// The range of a pod: the one it has, else the first free one.
    ///
    /// # Errors
    /// In words, when none is free.
    pub fn allocate(&mut self, uid: &str) -> Result<IdMapping, String> {
        let known = self.pods.iter().find(|(_, pod)| *pod == uid).map(|(index, _)| *index);
        let free = || (0..self.space.ranges).find(|index| !self.pods.contains_key(index));
        let index = known
            .or_else(free)
            .ok_or_else(|| "could not find an empty slot to allocate a user namespace".to_owned())?;
        self.pods.insert(index, uid.to_owned());
        let IdSpace { first, per_pod, .. } = self.space;
        Ok(IdMapping { host_id: first + index * per_pod, container_id: 0, length: per_pod })
    }

    /// Notes the range that a pod has by its file.
    ///
    /// # Errors
    /// In words, when it is not a range of this node, or another pod's.
    pub fn record(&mut self, uid: &str, mapping: IdMapping) -> Result<(), String> {
        let IdSpace { first, ranges, per_pod } = self.space;
        if mapping.length != per_pod {
            return Err(format!("{} ids, and pods of this node get {per_pod}", mapping.length));
        }
        let offset = mapping.host_id.checked_sub(first).filter(|offset| offset.is_multiple_of(per_pod));
        let index = offset.map(|offset| offset / per_pod).filter(|index| *index < ranges);
        let index = index.ok_or_else(|| format!("id {} begins none of the ranges of this node", mapping.host_id))?;
        match self.pods.get(&index) {
            Some(other) if other != uid => Err(format!("the range at {} is that of pod {other}, too", mapping.host_id)),
            _ => {
                self.pods.insert(index, uid.to_owned());
                Ok(())
            }
        }
    }

    /// Frees the range of a pod.
    pub fn release(&mut self, uid: &str) {
        self.pods.retain(|_, pod| pod != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_made_of_whole_ranges() {
        for (first, length, per_pod, max_pods, fits) in [
            (UNIT, 110 * 65_536, UNIT, 110, true),
            (UNIT, 109 * 65_536, UNIT, 110, false),
            (0, 110 * 65_536, UNIT, 110, false),
            (UNIT + 1, 110 * 65_536, UNIT, 110, false),
            (UNIT, 110 * 65_536 + 1, UNIT, 110, false),
            (UNIT, 1 << 32, UNIT, 110, false),
            (2 * UNIT, 110 * 131_072, 2 * UNIT, 110, true),
            (UNIT, 110 * 131_072, 2 * UNIT, 110, false),
            (UNIT, 110 * 65_536, 1000, 110, false),
            (UNIT, 110 * 65_536, 0, 110, false),
        ] {
            let space = IdSpace::new(first, length, per_pod, max_pods);
            assert_eq!(space.is_ok(), fits, "{first} {length} {per_pod}: {space:?}");
        }
        assert_eq!(IdSpace::of_machine(UNIT, 110), Ok(IdSpace::default()));
    }

    #[test]
    fn subordinate_ids_are_one_line() {
        for (text, want) in [
            ("0: kubelet 65536 7208960\n", Some((65_536, 7_208_960))),
            ("0: kubelet 65536 7208960\n1: kubelet 9000000 65536\n", None),
            ("", None),
            ("0: kubelet many 7208960\n", None),
            ("kubelet 65536 7208960\n", None),
        ] {
            assert_eq!(IdSpace::parse_subids(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn pods_keep_their_range_and_never_share_one() {
        let mut ranges = IdRanges::new(IdSpace::new(UNIT, 2 * 65_536, UNIT, 2).unwrap());
        let a = ranges.allocate("a").unwrap();
        assert_eq!((a.host_id, a.container_id, a.length), (UNIT, 0, UNIT));
        assert_eq!(ranges.allocate("a"), Ok(a));
        assert_eq!(ranges.allocate("b").unwrap().host_id, 2 * UNIT);
        assert!(ranges.allocate("c").is_err());
        ranges.release("a");
        assert_eq!(ranges.allocate("c"), Ok(a));
        assert_eq!(ranges.record("c", a), Ok(()));
        for (uid, mapping) in [
            ("d", a),
            ("d", IdMapping { host_id: 3 * UNIT, ..a }),
            ("d", IdMapping { host_id: 0, ..a }),
            ("d", IdMapping { host_id: UNIT + 1, ..a }),
            ("d", IdMapping { length: 2 * UNIT, ..a }),
        ] {
            assert!(ranges.record(uid, mapping).is_err(), "{mapping:?}");
        }
    }

    #[test]
    fn files_are_a_kubelets() {
        let mapping = IdMapping { host_id: 131_072, container_id: 0, length: UNIT };
        let text = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;
        assert_eq!(mapping.to_file(), text);
        assert_eq!(IdMapping::from_file(text), Ok(mapping));
        for wrong in [
            "",
            "{}",
            r#"{"uidMappings":[],"gidMappings":[]}"#,
            r#"{"uidMappings":[{"hostId":1,"containerId":0,"length":1}],"gidMappings":[{"hostId":2,"containerId":0,"length":1}]}"#,
            r#"{"uidMappings":[{"hostId":1,"containerId":1,"length":1}],"gidMappings":[{"hostId":1,"containerId":1,"length":1}]}"#,
        ] {
            assert!(IdMapping::from_file(wrong).is_err(), "{wrong}");
        }
    }
}
