//! What is asked of a container that stands alone, beyond what every container is asked.

use std::collections::BTreeSet;

use super::check::check_process;
use super::{Config, Mount, Namespace, Personality};
use crate::alone::namespaces::Namespaces;
use crate::rootfs::options::MountOptions;
use crate::sysctl;

pub(super) fn check(config: &Config) -> Result<(), String> {
    if config.root.path.as_os_str().is_empty() {
        return Err("root.path: is empty".into());
    }
    check_process(&config.process)?;
    let linux = &config.linux;
    check_namespaces(&linux.namespaces)?;
    let has = |kind: &str| linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    for (field, text) in [("hostname", &config.hostname), ("domainname", &config.domainname)] {
        if !text.is_empty() && !has("uts") {
            return Err(format!("{field}: would be the machine's; linux.namespaces has no uts"));
        }
    }
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if mapped && !has("user") {
        return Err("linux.uidMappings: linux.namespaces has no user".into());
    }
    let own = Namespaces::own(&linux.namespaces);
    for (name, value) in &linux.sysctl {
        sysctl::check(own, name, value).map_err(|error| format!("linux.sysctl: {name}: {error}"))?;
    }
    linux.personality.as_ref().map_or(Ok(()), check_personality)?;
    config.mounts.iter().try_for_each(check_mount)
}

fn check_namespaces(namespaces: &[Namespace]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = namespaces.iter().find(|namespace| !seen.insert(&namespace.kind)) {
        return Err(format!("linux.namespaces: {:?} is there twice", twice.kind));
    }
    if let Some(path) = namespaces.iter().filter_map(|namespace| namespace.path.as_ref()).find(|p| !p.is_absolute()) {
        return Err(format!("linux.namespaces: {path:?} is not an absolute path"));
    }
    if !namespaces.iter().any(|namespace| namespace.kind == "mount") {
        return Err("linux.namespaces: mount is missing: a container's root is never mounted on the machine".into());
    }
    Ok(())
}

fn check_personality(personality: &Personality) -> Result<(), String> {
    match personality {
        Personality { flags, .. } if !flags.is_empty() => {
            Err(format!("linux.personality: flags {flags:?} are not known"))
        }
        Personality { domain, .. } if matches!(domain.as_str(), "LINUX" | "LINUX32") => Ok(()),
        Personality { domain, .. } => Err(format!("linux.personality: {domain:?} is not LINUX or LINUX32")),
    }
}

fn check_mount(entry: &Mount) -> Result<(), String> {
    let name = format!("mounts: {:?}", entry.destination);
    let options = MountOptions::read(entry)?;
    if entry.is_bind() && entry.source.as_os_str().is_empty() {
        return Err(format!("{name}: a bind needs a source"));
    }
    if !entry.is_bind() && entry.kind.is_empty() {
        return Err(format!("{name}: has no type"));
    }
    if options.copy_up && entry.kind != "tmpfs" {
        return Err(format!("{name}: tmpcopyup is for a tmpfs alone"));
    }
    if options.map_ids.is_some() && !entry.is_bind() {
        return Err(format!("{name}: idmap is for bind mounts alone"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a small specification with this in its place.
    fn check(top: &str, linux: &str, mounts: &str) -> Result<(), String> {
        let text = format!(
            r#"{{"ociVersion": "1.2.0", "root": {{"path": "r"}}, "process": {{"args": ["x"], "cwd": "/"}}{top},
                "linux": {{{linux}}}, "mounts": [{mounts}]}}"#
        );
        serde_json::from_str::<Config>(&text).unwrap_or_else(|error| panic!("{text}: {error}")).check_alone()
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        let spaces = r#""namespaces": [{"type": "mount"}, {"type": "network"}]"#;
        for (top, linux, mounts, words) in [
            ("", r#""namespaces": []"#, "", "linux.namespaces: mount is missing"),
            ("", r#""namespaces": [{"type": "mount"}, {"type": "mount"}]"#, "", "twice"),
            ("", r#""namespaces": [{"type": "mount"}, {"type": "time"}]"#, "", "\"time\""),
            ("", r#""namespaces": [{"type": "mount", "path": "x"}]"#, "", "not an absolute path"),
            (r#", "hostname": "h""#, spaces, "", "hostname"),
            (r#", "domainname": "d""#, spaces, "", "domainname"),
            (r#", "vm": {}"#, spaces, "", "vm"),
            (r#", "hooks": {"prestart": [{"path": "x"}]}"#, spaces, "", "hooks.prestart"),
            (r#", "hooks": {"poststop": [{"path": "/x", "timeout": 0}]}"#, spaces, "", "timeout"),
            ("", &format!(r#"{spaces}, "sysctl": {{"kernel.shmmax": "1"}}"#), "", "kernel.shmmax"),
            ("", &format!(r#"{spaces}, "personality": {{"domain": "BSD"}}"#), "", "BSD"),
            ("", &format!(r#"{spaces}, "timeOffsets": {{}}"#), "", "linux.timeOffsets"),
            ("", &format!(r#"{spaces}, "intelRdt": {{}}"#), "", "linux.intelRdt"),
            ("", &format!(r#"{spaces}, "memoryPolicy": {{}}"#), "", "linux.memoryPolicy"),
            (
                "",
                &format!(r#"{spaces}, "seccomp": {{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}}"#),
                "",
                "listenerPath",
            ),
            ("", spaces, r#"{"destination": "/x", "type": "bind", "source": "/", "options": ["size=1"]}"#, "size=1"),
            ("", spaces, r#"{"destination": "/x", "type": "bind"}"#, "source"),
            ("", spaces, r#"{"destination": "/x"}"#, "no type"),
            ("", spaces, r#"{"destination": "/x", "type": "proc", "options": ["tmpcopyup"]}"#, "tmpcopyup"),
        ] {
            let said = check(top, linux, mounts).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
        check("", &format!(r#"{spaces}, "sysctl": {{"net.core.somaxconn": "1"}}"#), "").unwrap();
    }
}
