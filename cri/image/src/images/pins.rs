//! Pinned images: those whose names fit a pattern are not to be collected.

use crate::error::ImageError;
use crate::reference::Reference;

/// The patterns, checked once.
pub(super) struct Pins(Vec<String>);

impl Pins {
    /// Takes references and globs: `*` stands for any characters, `?` for one.
    pub(super) fn new(patterns: &[String]) -> Result<Self, ImageError> {
        let checked = patterns.iter().map(|pattern| {
            if pattern.contains(['*', '?']) {
                return Ok(pattern.clone());
            }
            // A plain reference may leave out what normal ones have.
            pattern.parse().map(|reference: Reference| reference.to_string()).map_err(|error| {
                ImageError::Configuration(format!("pinned: {error}; give a reference, or a pattern with * or ?"))
            })
        });
        checked.collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of the names fits.
    pub(super) fn hold<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        names.any(|name| self.0.iter().any(|pattern| fits(pattern.as_bytes(), name.as_bytes())))
    }
}

/// Matches without backtracking further than to the last star: the time is bounded by the product of the lengths.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while next < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, next));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[next] => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                next = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, expected) in [
            ("registry.k8s.io/pause:*", "registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/pause:*", "registry.k8s.io/pauses:3.10", false),
            ("registry.k8s.io/pause*", "registry.k8s.io/pause@sha256:00", true),
            ("*/pause:3.?", "a.example/b/pause:3.9", true),
            ("*/pause:3.?", "a.example/b/pause:3.10", false),
            ("*", "anything", true),
            ("*a*b*c", "xxaxxbxxbxc", true),
            ("*a*b*c", "xxaxxbxxbxcd", false),
            ("?", "", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        let pins = Pins::new(&["pause".into(), "a.example/b:1".into()]).unwrap();
        let holds = |name: &str| pins.hold([name.to_owned()].iter());
        assert!(holds("docker.io/library/pause:latest") && holds("a.example/b:1") && !holds("a.example/b:2"));
        let error = Pins::new(&["a b".into()]).err().unwrap().to_string();
        assert!(error.contains("pinned") && error.contains("a b"), "{error}");
    }
}
