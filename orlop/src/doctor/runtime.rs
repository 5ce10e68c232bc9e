//! What belongs to the container runtime: its configuration, user namespaces, and how crictl finds it.

use std::path::Path;
use std::process::Command;

use super::{Finding, Place};
use crate::cri::{self, Arguments, beside};

/// Where crictl looks for its runtime.
const CRICTL_FILE: &str = "/etc/crictl.yaml";

pub(super) fn configuration(place: &Place) -> Finding {
    let file = place.layout.configuration.join("cri.toml");
    match cri::config(&place.layout, &Arguments::default()) {
        Ok(_) if file.exists() => Finding::Fine(format!("{} is right", file.display())),
        Ok(_) => Finding::Fine(format!("all at its default; {} would change it", file.display())),
        Err(error) => Finding::Missing(
            format!("{error:#}"),
            "correct it: `orlop cri config default` shows every key, `orlop cri config check` looks again".into(),
        ),
    }
}

pub(super) fn user_namespaces(place: &Place) -> Finding {
    let advice = "pods with hostUsers: false are refused; Linux 5.19 or newer and a state folder on ext4, xfs or btrfs \
                  are needed";
    let folder = &place.scratch;
    let _ = std::fs::create_dir_all(folder);
    let shim = match beside("orlop-shim") {
        Ok(shim) => shim,
        Err(error) => return Finding::Less(format!("{error:#}"), advice.into()),
    };
    match Command::new(shim).arg("--check-user-namespaces").arg(folder).output() {
        Ok(output) if output.status.success() => Finding::Fine("pods can have their own".into()),
        Ok(output) => Finding::Less(String::from_utf8_lossy(&output.stderr).trim().to_string(), advice.into()),
        Err(error) => Finding::Less(format!("the shim can't be run: {error}"), advice.into()),
    }
}

pub(super) fn crictl(place: &Place) -> Finding {
    let endpoint = format!("unix://{}", place.layout.cri_socket().display());
    let text = std::fs::read_to_string(Path::new(CRICTL_FILE)).unwrap_or_default();
    if text.contains(&endpoint) {
        return Finding::Fine(format!("{CRICTL_FILE} names this runtime"));
    }
    if place.layout.root.is_some() {
        return Finding::Fine(format!("crictl --runtime-endpoint {endpoint} speaks to this instance"));
    }
    Finding::Less(
        format!("{CRICTL_FILE} does not name this runtime"),
        format!("for crictl without flags: echo 'runtime-endpoint: {endpoint}' > {CRICTL_FILE}"),
    )
}
