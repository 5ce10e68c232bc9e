//! Which events are written, and whether as a new object or as a higher count: the rules of client-go's event
//! correlator. Pure: time comes from outside.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::{Duration, Instant};

use orlop_agent_core::ports::{EventType, ObjectRef};

/// Events of one object that pass at once, and the time after which one more passes.
const OBJECT_BURST: f64 = 25.0;
const OBJECT_REFILL: Duration = Duration::from_secs(300);
/// More different messages than this, each within the window after the one before, are written as one combined event.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Entries kept of each kind; the least recently used goes first.
const ENTRIES_MAX: usize = 4096;
/// Longest message in bytes.
const MESSAGE_MAX: usize = 4096;

/// An event as the agent records it.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    pub(super) object: ObjectRef,
    pub(super) event_type: EventType,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EventKey {
    object: ObjectRef,
    warning: bool,
    reason: String,
    message: String,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Remembers the written object by this.
    pub(super) key: EventKey,
    /// How often the event has happened, this time included.
    pub(super) count: i32,
    /// Name of the object that holds the count so far.
    pub(super) written: Option<String>,
    /// The text to write.
    pub(super) message: String,
}

struct Counted {
    count: i32,
    name: Option<String>,
    used: Instant,
}

struct Similar {
    messages: HashSet<String>,
    used: Instant,
}

struct Bucket {
    tokens: f64,
    used: Instant,
}

/// What was recorded lately.
#[derive(Default)]
pub(super) struct Correlator {
    counted: HashMap<EventKey, Counted>,
    similar: HashMap<EventKey, Similar>,
    buckets: HashMap<ObjectRef, Bucket>,
}

impl Correlator {
    /// What to write of an event; none where it is one too many.
    pub(super) fn observe(&mut self, event: &Observation, now: Instant) -> Option<Decision> {
        if !self.take_token(&event.object, now) {
            return None;
        }
        let mut message = event.message.clone();
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        let group = EventKey {
            object: event.object.clone(),
            warning: event.event_type == EventType::Warning,
            reason: event.reason.clone(),
            message: String::new(),
        };
        let combined = self.is_one_of_many(&group, &message, now);
        let key = if combined { group } else { EventKey { message: message.clone(), ..group } };
        let fresh = || Counted { count: 0, name: None, used: now };
        let counted = entry(&mut self.counted, key.clone(), fresh, |counted| counted.used);
        counted.count += 1;
        counted.used = now;
        let message = if combined { format!("(combined from similar events): {message}") } else { message };
        Some(Decision { key, count: counted.count, written: counted.name.clone(), message })
    }

    /// Remembers under which name an event was written; none forgets it.
    pub(super) fn written(&mut self, key: &EventKey, name: Option<String>) {
        if let Some(counted) = self.counted.get_mut(key) {
            counted.name = name;
        }
    }

    fn take_token(&mut self, object: &ObjectRef, now: Instant) -> bool {
        let object = ObjectRef { field_path: None, ..object.clone() };
        let fresh = || Bucket { tokens: OBJECT_BURST, used: now };
        let bucket = entry(&mut self.buckets, object, fresh, |bucket| bucket.used);
        let refill = now.saturating_duration_since(bucket.used).as_secs_f64() / OBJECT_REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + refill).min(OBJECT_BURST);
        bucket.used = now;
        let pass = bucket.tokens >= 1.0;
        if pass {
            bucket.tokens -= 1.0;
        }
        pass
    }

    fn is_one_of_many(&mut self, group: &EventKey, message: &str, now: Instant) -> bool {
        let fresh = || Similar { messages: HashSet::new(), used: now };
        let similar = entry(&mut self.similar, group.clone(), fresh, |similar| similar.used);
        if now.saturating_duration_since(similar.used) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.used = now;
        if similar.messages.len() < SIMILAR_MAX {
            similar.messages.insert(message.to_owned());
        }
        similar.messages.len() >= SIMILAR_MAX
    }
}

/// The entry of a key, new where needed; the least recently used one makes place.
fn entry<K: Eq + Hash + Clone, V>(
    map: &mut HashMap<K, V>,
    key: K,
    fresh: impl FnOnce() -> V,
    used: impl Fn(&V) -> Instant,
) -> &mut V {
    if map.len() >= ENTRIES_MAX
        && !map.contains_key(&key)
        && let Some(oldest) = map.iter().min_by_key(|(_, value)| used(value)).map(|(key, _)| key.clone())
    {
        map.remove(&oldest);
    }
    map.entry(key).or_insert_with(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, message: &str) -> Observation {
        let object = ObjectRef {
            kind: "Pod".into(),
            namespace: "ns".into(),
            name: name.into(),
            uid: name.into(),
            field_path: None,
        };
        Observation { object, event_type: EventType::Warning, reason: "BackOff".into(), message: message.into() }
    }

    #[test]
    fn the_same_event_is_counted_on_one_object() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let first = correlator.observe(&event("p", "m"), now).unwrap();
        assert_eq!((first.count, first.written), (1, None));
        correlator.written(&first.key, Some("p.1".into()));
        let second = correlator.observe(&event("p", "m"), now).unwrap();
        assert_eq!((second.count, second.written.as_deref()), (2, Some("p.1")));
        let other = correlator.observe(&event("q", "m"), now).unwrap();
        assert_eq!((other.count, other.written), (1, None));
    }

    #[test]
    fn many_different_messages_become_one_event() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        for n in 1..SIMILAR_MAX {
            let decision = correlator.observe(&event("p", &format!("m{n}")), now).unwrap();
            assert_eq!(decision.message, format!("m{n}"));
        }
        let tenth = correlator.observe(&event("p", "x"), now).unwrap();
        assert_eq!((tenth.count, tenth.message.as_str()), (1, "(combined from similar events): x"));
        let next = correlator.observe(&event("p", "y"), now).unwrap();
        assert_eq!((next.count, next.key), (2, tenth.key));
        let later = correlator.observe(&event("p", "z"), now + SIMILAR_WINDOW * 2).unwrap();
        assert_eq!(later.message, "z", "after a quiet window it starts over");
    }

    #[test]
    fn one_object_cannot_flood() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let passed = (0..100).filter(|_| correlator.observe(&event("p", "m"), now).is_some()).count();
        assert_eq!(passed, OBJECT_BURST as usize);
        assert!(correlator.observe(&event("q", "m"), now).is_some(), "others are not held up");
        assert!(correlator.observe(&event("p", "m"), now + OBJECT_REFILL).is_some());
    }

    #[test]
    fn long_messages_and_many_objects_are_bounded() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        assert!(correlator.observe(&event("p", &"é".repeat(MESSAGE_MAX)), now).unwrap().message.len() <= MESSAGE_MAX);
        for n in 0..ENTRIES_MAX + 10 {
            correlator.observe(&event(&n.to_string(), "m"), now);
        }
        assert!(correlator.counted.len() <= ENTRIES_MAX && correlator.buckets.len() <= ENTRIES_MAX);
    }
}
