//! User namespaces of pods, as they are asked for.

use orlop_container::config::IdMapping;
use orlop_container::protocol::UserMappings;
use orlop_proto::cri;

use crate::{SpecError, wrong};

/// The ids of a user namespace that is asked for; none when the machine's own is.
///
/// # Errors
/// When it can't be had; names the field. One range of users and one of groups is taken, with the root of the container
/// in each, as the interface has it.
pub fn mappings(field: &str, options: &cri::NamespaceOption) -> Result<Option<UserMappings>, SpecError> {
    let Some(asked) = &options.userns_options else { return Ok(None) };
    let field = format!("{field}.userns_options");
    match cri::NamespaceMode::try_from(asked.mode) {
        Ok(cri::NamespaceMode::Node) if asked.uids.is_empty() && asked.gids.is_empty() => return Ok(None),
        Ok(cri::NamespaceMode::Node) => {
            return Err(wrong(field, "has mappings, but mode NODE uses the machine's user namespace"));
        }
        Ok(cri::NamespaceMode::Pod) => {}
        _ => return Err(wrong(format!("{field}.mode"), "must be POD or NODE")),
    }
    if options.network == cri::NamespaceMode::Node as i32 {
        return Err(wrong(field, "a pod on the machine's network can't have a user namespace"));
    }
    if options.pid == cri::NamespaceMode::Node as i32 || options.ipc == cri::NamespaceMode::Node as i32 {
        return Err(wrong(field, "a pod with the machine's PID or IPC namespace can't have a user namespace"));
    }
    let mappings = UserMappings {
        uid_mappings: one(&format!("{field}.uids"), &asked.uids)?,
        gid_mappings: one(&format!("{field}.gids"), &asked.gids)?,
    };
    mappings.check().map_err(|message| wrong(field, message))?;
    Ok(Some(mappings))
}

fn one(field: &str, ranges: &[cri::IdMapping]) -> Result<Vec<IdMapping>, SpecError> {
    match ranges {
        [_] => Ok(ids(ranges)),
        other => Err(wrong(field, format!("wants exactly one range, not {}", other.len()))),
    }
}

/// Ranges in OCI's words.
pub(crate) fn ids(ranges: &[cri::IdMapping]) -> Vec<IdMapping> {
    let range = |range: &cri::IdMapping| IdMapping {
        container_id: range.container_id,
        host_id: range.host_id,
        size: range.length,
    };
    ranges.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: cri::NamespaceMode, ranges: &[(u32, u32, u32)]) -> cri::NamespaceOption {
        let ranges: Vec<cri::IdMapping> = ranges
            .iter()
            .map(|(container_id, host_id, length)| cri::IdMapping {
                container_id: *container_id,
                host_id: *host_id,
                length: *length,
            })
            .collect();
        let asked = cri::UserNamespace { mode: mode.into(), uids: ranges.clone(), gids: ranges };
        cri::NamespaceOption { userns_options: Some(asked), ..Default::default() }
    }

    #[test]
    fn what_can_be_asked_for() {
        use cri::NamespaceMode::{Container, Node, Pod, Target};
        let good = [(0, 100_000, 65536)];
        assert_eq!(mappings("f", &cri::NamespaceOption::default()), Ok(None));
        assert_eq!(mappings("f", &options(Node, &[])), Ok(None));
        let found = mappings("f", &options(Pod, &good)).unwrap().unwrap();
        assert_eq!(found.uid_mappings, [IdMapping { container_id: 0, host_id: 100_000, size: 65536 }]);
        for (bad, words) in [
            (options(Node, &good), "mode NODE"),
            (options(Container, &good), "POD or NODE"),
            (options(Target, &good), "POD or NODE"),
            (options(Pod, &[]), "exactly one range"),
            (options(Pod, &[(0, 100_000, 10), (10, 200_000, 10)]), "exactly one range"),
            (options(Pod, &[(1, 100_000, 10)]), "id 0"),
            (cri::NamespaceOption { network: Node.into(), ..options(Pod, &good) }, "network"),
            (cri::NamespaceOption { pid: Node.into(), ..options(Pod, &good) }, "PID"),
        ] {
            let said = mappings("f", &bad).unwrap_err().to_string();
            assert!(said.contains(words) && said.starts_with("f.userns_options"), "{said}");
        }
    }
}
