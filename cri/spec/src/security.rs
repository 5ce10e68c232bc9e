//! Capabilities, seccomp, masked paths: what a container may do.

use orlop_container::config::Capabilities as CapabilitySets;
use orlop_kernel::capability::Capabilities;
use orlop_kernel::seccomp::{self, Profile};
use orlop_proto::cri;

use crate::{SpecError, wrong};

/// Capabilities that a container has when nothing is said (containerd's default).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities of a container.
pub(crate) fn capabilities(security: &cri::LinuxContainerSecurityContext) -> Result<Capabilities, SpecError> {
    if security.privileged {
        return Ok(Capabilities::ALL);
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let set = |field: &str, names: &[String]| {
        let all = names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        if all {
            return Ok(Capabilities::ALL);
        }
        Capabilities::from_names(names.iter().map(String::as_str)).map_err(|name| {
            wrong(format!("linux.security_context.capabilities.{field}"), format!("{name:?} is no capability"))
        })
    };
    let default = Capabilities::from_names(DEFAULT).unwrap_or_default();
    let (add, drop) =
        (set("add_capabilities", &asked.add_capabilities)?, set("drop_capabilities", &asked.drop_capabilities)?);
    // "drop ALL" with additions keeps the additions; "add ALL" with drops keeps all but those.
    let drops_all = asked.drop_capabilities.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    Ok(if drops_all { add } else { Capabilities((default.0 | add.0) & !drop.0) })
}

/// The AppArmor profile of a container; none for one that is not confined. The deprecated text is read where the field is
/// absent. `default` is the name of the runtime's own profile, or why there is none here: who asks for it is refused then,
/// who says nothing goes without.
pub(crate) fn apparmor_profile(
    security: &cri::LinuxContainerSecurityContext,
    default: Result<&str, &str>,
) -> Result<Option<String>, SpecError> {
    use cri::security_profile::ProfileType;
    const LOCALHOST: &str = "localhost/";
    let field = "linux.security_context.apparmor";
    let wanted = match &security.apparmor {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Localhost) => Wanted::Named(profile.localhost_ref.trim_start_matches(LOCALHOST)),
            Ok(ProfileType::RuntimeDefault) => Wanted::Default,
            Ok(ProfileType::Unconfined) => Wanted::Nothing,
            Err(_) => return Err(wrong(format!("{field}.profile_type"), "unknown")),
        },
        #[allow(deprecated)]
        None => match security.apparmor_profile.as_str() {
            "" => Wanted::Whatever,
            "runtime/default" => Wanted::Default,
            "unconfined" => Wanted::Nothing,
            text => match text.strip_prefix(LOCALHOST) {
                Some(name) => Wanted::Named(name),
                None => return Err(wrong(format!("{field}_profile"), format!("{text:?} must begin with {LOCALHOST}"))),
            },
        },
    };
    match wanted {
        Wanted::Named("") => {
            Err(wrong(format!("{field}.localhost_ref"), "is empty: name a profile that is loaded on the node"))
        }
        Wanted::Named(name) => Ok(Some(name.to_string())),
        Wanted::Nothing => Ok(None),
        // The runtime's own is not meant for those who may do everything.
        Wanted::Default | Wanted::Whatever if security.privileged => Ok(None),
        Wanted::Default => match default {
            Ok(name) => Ok(Some(name.to_string())),
            Err(reason) => Err(wrong(format!("{field}.profile_type"), format!("RuntimeDefault: {reason}"))),
        },
        Wanted::Whatever => Ok(default.ok().map(str::to_string)),
    }
}

/// What a container asks of AppArmor.
enum Wanted<'a> {
    /// Nothing was said.
    Whatever,
    Default,
    Nothing,
    Named(&'a str),
}

/// The sets of a process, with its ambient ones.
pub(crate) fn sets(
    bounding: Capabilities,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<CapabilitySets, SpecError> {
    let names = bounding.names();
    let ambient =
        security.capabilities.as_ref().map(|asked| asked.add_ambient_capabilities.clone()).unwrap_or_default();
    let ambient = Capabilities::from_names(ambient.iter().map(String::as_str)).map_err(|name| {
        wrong("linux.security_context.capabilities.add_ambient_capabilities", format!("{name:?} is no capability"))
    })?;
    Ok(CapabilitySets {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ambient: ambient.names(),
        ..CapabilitySets::default()
    })
}

/// The filter of a container: none when it is privileged or unconfined. `localhost` holds the text of the profile
/// that a Localhost profile names.
pub(crate) fn seccomp_profile(
    security: &cri::LinuxContainerSecurityContext,
    bounding: Capabilities,
    localhost: Option<&Profile>,
) -> Result<Option<Profile>, SpecError> {
    use cri::security_profile::ProfileType;
    let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Some(seccomp::default_profile(bounding))),
        Ok(ProfileType::Unconfined) => Ok(None),
        Ok(ProfileType::Localhost) => localhost.cloned().map(Some).ok_or_else(|| {
            wrong(
                "linux.security_context.seccomp.localhost_ref",
                format!("no profile {:?} on this node", profile.localhost_ref),
            )
        }),
        Err(_) => Err(wrong("linux.security_context.seccomp.profile_type", "unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmor_profiles() {
        use cri::security_profile::ProfileType;
        let field = |kind: ProfileType, name: &str| cri::LinuxContainerSecurityContext {
            apparmor: Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }),
            ..Default::default()
        };
        #[allow(deprecated)]
        let text =
            |text: &str| cri::LinuxContainerSecurityContext { apparmor_profile: text.into(), ..Default::default() };
        let privileged = |context: cri::LinuxContainerSecurityContext| cri::LinuxContainerSecurityContext {
            privileged: true,
            ..context
        };
        for (context, expected) in [
            (field(ProfileType::Localhost, "mine"), Some("mine")),
            (field(ProfileType::Localhost, "localhost/mine"), Some("mine")),
            (privileged(field(ProfileType::Localhost, "mine")), Some("mine")),
            (field(ProfileType::Unconfined, ""), None),
            (field(ProfileType::RuntimeDefault, ""), Some("own")),
            (privileged(field(ProfileType::RuntimeDefault, "")), None),
            (text("localhost/old"), Some("old")),
            (text("runtime/default"), Some("own")),
            (text("unconfined"), None),
            (text(""), Some("own")),
            (privileged(text("")), None),
        ] {
            assert_eq!(apparmor_profile(&context, Ok("own")).unwrap().as_deref(), expected, "{context:?}");
        }
        for asked in [field(ProfileType::RuntimeDefault, ""), text("runtime/default")] {
            let said = apparmor_profile(&asked, Err("there is no parser")).unwrap_err().to_string();
            assert_eq!(said, "linux.security_context.apparmor.profile_type: RuntimeDefault: there is no parser");
        }
        assert_eq!(apparmor_profile(&text(""), Err("there is no parser")), Ok(None));
        for bad in [field(ProfileType::Localhost, ""), text("mine")] {
            assert!(apparmor_profile(&bad, Ok("own")).is_err(), "{bad:?}");
        }
    }
}
