//! Which ids the node gives to pods with a user namespace: those of the user `kubelet`, or all but the machine's first.

use std::time::Duration;

use orlop_agent_core::user_namespaces::IdSpace;

use crate::kubelet_config::KubeletConfiguration;

/// The user whose subordinate ids are given to pods, where the machine has it.
const USER: &str = "kubelet";
/// Tells of subordinate ids; the machine may have them from a directory service.
const PROGRAM: &str = "getsubids";
const DEADLINE: Duration = Duration::from_secs(10);

/// Why pods can't have ids of their own.
#[derive(Debug, thiserror::Error)]
pub enum UserIdsError {
    /// The program that tells of subordinate ids failed.
    #[error("ids of pods: {PROGRAM} {args}: {why}; give user {USER} subordinate ids, or remove that user")]
    Program {
        /// What it was called with.
        args: String,
        /// What went wrong.
        why: String,
    },
    /// The ids that there are can't be used.
    #[error("ids of pods: {0}; see userNamespaces.idsPerPod, maxPods and the subordinate ids of user {USER}")]
    Space(String),
}

/// The node's ids for pods.
///
/// # Errors
/// [`UserIdsError`] where user `kubelet` has subordinate ids that can't be used. Others would not be safe to take.
pub(crate) async fn find_id_space(config: &KubeletConfiguration) -> Result<IdSpace, UserIdsError> {
    let (per_pod, max_pods) = (config.user_namespaces.ids_per_pod, config.max_pods);
    let users = tokio::fs::read_to_string("/etc/passwd").await.unwrap_or_default();
    let known = users.lines().any(|line| line.split(':').next() == Some(USER));
    let subids = if known { ask(&[USER]).await? } else { None };
    let Some(of_users) = subids else {
        return IdSpace::of_machine(per_pod, max_pods).map_err(UserIdsError::Space);
    };
    if ask(&["-g", USER]).await?.as_ref() != Some(&of_users) {
        return Err(UserIdsError::Space(format!("the subordinate ids of user {USER} are not those of its groups")));
    }
    let (first, length) = IdSpace::parse_subids(&of_users).map_err(UserIdsError::Space)?;
    IdSpace::new(first, length, per_pod, max_pods).map_err(UserIdsError::Space)
}

/// What the program prints; none where the machine does not have it.
async fn ask(args: &[&str]) -> Result<Option<String>, UserIdsError> {
    let failed = |why: String| UserIdsError::Program { args: args.join(" "), why };
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(DEADLINE, command.output()).await {
        Err(_) => return Err(failed(format!("no answer within {} s", DEADLINE.as_secs()))),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
