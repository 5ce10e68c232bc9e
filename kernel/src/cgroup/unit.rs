//! systemd's units as places in the hierarchy: slices, which nest by the dashes of their names, and scopes in them.

use serde::{Deserialize, Serialize};

/// Who makes the cgroups of pods and containers. Kubelet and runtime must agree (`cgroupDriver` of the kubelet, the
/// CRI's `RuntimeConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// We do, in the file system of the cgroups.
    #[default]
    Cgroupfs,
    /// systemd does, as units.
    Systemd,
}

/// Longest name of a unit (systemd's `UNIT_NAME_MAX` without the zero at the end).
const NAME_MAX: usize = 255;
/// Ending of a slice's name.
const SLICE: &str = ".slice";
/// Ending of a scope's name.
const SCOPE: &str = ".scope";
/// The slice of everything, which is the root of the hierarchy.
const ROOT: &str = "-.slice";

/// A name that systemd would not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {problem}")]
pub struct UnitError {
    /// The name, or the path that should lead to it.
    pub name: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

fn wrong(name: &str, problem: impl Into<String>) -> UnitError {
    UnitError { name: name.into(), problem: problem.into() }
}

/// The place of a slice in the hierarchy: each dash is a level, and each level has the names of those above it, so
/// `a-b.slice` is `/a.slice/a-b.slice`. The slice of everything is the empty path.
///
/// # Errors
/// When it is no name of a slice.
pub fn slice_path(name: &str) -> Result<String, UnitError> {
    if name == ROOT {
        return Ok(String::new());
    }
    let stem = name.strip_suffix(SLICE).ok_or_else(|| {
        wrong(name, "is no slice; with the systemd cgroup driver it is a name such as kubepods-besteffort.slice")
    })?;
    if name.len() > NAME_MAX {
        return Err(wrong(name, format!("has {} characters; units have {NAME_MAX} at most", name.len())));
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\".contains(letter);
    if let Some(letter) = stem.chars().find(|letter| !plain(*letter)) {
        return Err(wrong(
            name,
            format!("holds {letter:?}, which names of units can't; write it as {}", escape(letter)),
        ));
    }
    let mut path = String::new();
    let mut end = 0;
    for part in stem.split('-') {
        if part.is_empty() {
            return Err(wrong(name, "has a dash with nothing before or after it; each dash parts two levels"));
        }
        end += part.len();
        path.push('/');
        path.push_str(&stem[..end]);
        path.push_str(SLICE);
        end += 1;
    }
    Ok(path)
}

/// The name of a slice that is given by its name or by its whole path, as the kubelet does.
///
/// # Errors
/// When it is no slice, or the path is not the one that its name stands for.
pub fn slice_at(place: &str) -> Result<&str, UnitError> {
    let name = place.rsplit('/').next().unwrap_or_default();
    let path = slice_path(name)?;
    let parent = place.strip_suffix(name).unwrap_or_default();
    if !matches!(parent, "" | "/") && place.trim_start_matches('/') != path.trim_start_matches('/') {
        return Err(wrong(place, format!("is not where systemd has the slice {name}: that is {path}")));
    }
    Ok(name)
}

/// Part of a slice's name that stands for one level: dashes, which would be levels of their own, become underscores, as
/// the kubelet writes them (`pod<uid>` with the dashes of the uid).
#[must_use]
pub fn slice_part(text: &str) -> String {
    text.replace('-', "_")
}

/// A byte as systemd writes it where it can't stand for itself.
fn escape(letter: char) -> String {
    let mut bytes = [0; 4];
    letter.encode_utf8(&mut bytes).bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// A scope in its slice: the processes of one container, or of pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Name of the slice.
    pub slice: String,
    /// Name of the unit.
    pub name: String,
}

impl Scope {
    /// The scope of a container in a slice, named as other runtimes name theirs (`crio-<id>.scope`): whoever looks for
    /// ids in paths takes what follows the last dash.
    ///
    /// # Errors
    /// When the parent is no slice.
    pub fn of(parent: &str, id: &str) -> Result<Scope, UnitError> {
        Ok(Scope { slice: slice_at(parent)?.into(), name: format!("orlop-{id}{SCOPE}") })
    }

    /// The scope whose cgroup a path is, if it is one.
    #[must_use]
    pub fn at(path: &str) -> Option<Scope> {
        let (above, name) = path.rsplit_once('/')?;
        name.strip_suffix(SCOPE).filter(|stem| !stem.is_empty())?;
        let slice = if above.is_empty() { ROOT } else { slice_at(above).ok()? };
        Some(Scope { slice: slice.into(), name: name.into() })
    }

    /// Its cgroup, below the hierarchy's root.
    ///
    /// # Errors
    /// When the slice has no name that systemd would take.
    pub fn path(&self) -> Result<String, UnitError> {
        Ok(format!("{}/{}", slice_path(&self.slice)?, self.name))
    }

    /// As runtime programs are told of it: `slice:prefix:name` for the unit `prefix-name.scope`.
    #[must_use]
    pub fn for_program(&self) -> String {
        let stem = self.name.strip_suffix(SCOPE).unwrap_or(&self.name);
        let (prefix, name) = stem.split_once('-').unwrap_or(("", stem));
        format!("{}:{prefix}:{name}", self.slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_dashes() {
        for (name, path) in [
            ("-.slice", ""),
            ("test.slice", "/test.slice"),
            ("kubepods.slice", "/kubepods.slice"),
            (
                "kubepods-burstable-pod1_2.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
            ("a.b-c\\x2d.slice", "/a.b.slice/a.b-c\\x2d.slice"),
        ] {
            assert_eq!(slice_path(name).as_deref(), Ok(path), "{name}");
            assert_eq!(slice_at(name), Ok(name));
            if !path.is_empty() {
                assert_eq!(slice_at(path), Ok(name), "{path}");
            }
        }
    }

    #[test]
    fn what_is_no_slice_is_named() {
        let long = format!("{}.slice", "x".repeat(250));
        for (name, words) in [
            ("", "no slice"),
            ("/kubepods/burstable", "no slice"),
            (".slice", "dash"),
            ("-a.slice", "dash"),
            ("a-.slice", "dash"),
            ("a--b.slice", "dash"),
            ("a b.slice", "\\x20"),
            ("é.slice", "\\xc3\\xa9"),
            ("a@b.slice", "\\x40"),
            (long.as_str(), "256 characters"),
            ("/x.slice/a-b.slice", "/a.slice/a-b.slice"),
            ("/a.slice/../a-b.slice", "/a.slice/a-b.slice"),
            ("/a.slice/", "no slice"),
        ] {
            let said = slice_at(name).expect_err(name).to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn scopes_and_their_paths() {
        let scope = Scope::of("/kubepods.slice/kubepods-pod1_2.slice", "0af").unwrap();
        assert_eq!(scope.name, "orlop-0af.scope");
        let path = scope.path().unwrap();
        assert_eq!(path, "/kubepods.slice/kubepods-pod1_2.slice/orlop-0af.scope");
        assert_eq!(Scope::at(&path), Some(scope.clone()));
        assert_eq!(scope.for_program(), "kubepods-pod1_2.slice:orlop:0af");
        let top = Scope::of("-.slice", "1").unwrap();
        assert_eq!(top.path().unwrap(), "/orlop-1.scope");
        assert_eq!(Scope::at("/orlop-1.scope"), Some(top));
        for path in ["/kubepods/burstable/pod1/0af", "/a/x.scope", "/a.slice/.scope", "/a.slice", "x.scope", ""] {
            assert_eq!(Scope::at(path), None, "{path}");
        }
    }

    #[test]
    fn parts_have_no_levels_of_their_own() {
        assert_eq!(slice_part("pod1-2-3"), "pod1_2_3");
    }
}
