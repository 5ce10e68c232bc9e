//! The default profile: what an ordinary container may call, depending on its capabilities.

use serde::Deserialize;

use super::{Argument, Profile, Rule};
use crate::capability::Capabilities;

/// The profile as shipped; the calls are those of moby's default profile.
const TEXT: &str = include_str!("../../../config/seccomp/default.json");

/// A profile whose rules depend on capabilities.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Template {
    default_action: String,
    default_errno_ret: u32,
    architectures: Vec<String>,
    rules: Vec<TemplateRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TemplateRule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
    /// Holds when the process has all of these.
    #[serde(default)]
    with_capabilities: Vec<String>,
    /// Holds when the process has none of these.
    #[serde(default)]
    without_capabilities: Vec<String>,
}

/// The default profile (`RuntimeDefault`) for a process with this bounding set.
///
/// # Panics
/// Never: the shipped text is checked by a test.
#[must_use]
pub fn default_profile(bounding: Capabilities) -> Profile {
    let template: Template = serde_json::from_str(TEXT).expect("the shipped profile is well-formed");
    let has = |name: &String| bounding.has(name);
    let holds =
        |rule: &TemplateRule| rule.with_capabilities.iter().all(has) && !rule.without_capabilities.iter().any(has);
    let rules = template.rules.into_iter().filter(holds);
    Profile {
        default_action: template.default_action,
        default_errno_ret: Some(template.default_errno_ret),
        architectures: template.architectures,
        flags: Vec::new(),
        syscalls: rules
            .map(|rule| Rule { names: rule.names, action: rule.action, errno_ret: rule.errno_ret, args: rule.args })
            .collect(),
        listener_path: None,
    }
}
