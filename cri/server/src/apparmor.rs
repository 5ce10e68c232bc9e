//! The AppArmor profile of containers that name none: given to the kernel before the first of them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orlop_kernel::lsm;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// Name of the profile.
const NAME: &str = "orlop-default";
/// Its text.
const TEXT: &str = include_str!("apparmor.profile");
/// The program that gives profiles to the kernel.
const PARSER: &str = "apparmor_parser";
/// Where it is.
const PARSER_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
/// How long it may take.
const PARSER_TIME: Duration = Duration::from_secs(30);
/// How much of what it says is told.
const WORDS_MAX: usize = 300;

/// What is known of the profile.
#[derive(Default)]
pub(crate) struct AppArmor {
    /// One asks at a time. Whether this process has loaded the profile already, and what went wrong last.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loaded: bool,
    failure: Option<String>,
}

impl AppArmor {
    /// Name of the profile, once it is loaded; or why this machine can't have it. One that an earlier server has left is
    /// replaced once, and one that somebody has unloaded meanwhile is loaded again.
    pub(crate) async fn default_profile(&self) -> Result<&'static str, String> {
        if !lsm::has_apparmor() {
            return Err("AppArmor is not enabled on this node".into());
        }
        let mut state = self.state.lock().await;
        // A list that can't be read says nothing against what was loaded.
        if state.loaded && lsm::has_apparmor_profile(NAME).unwrap_or(true) {
            return Ok(NAME);
        }
        let loaded = load(parser().as_deref()).await;
        state.loaded = loaded.is_ok();
        let told = state.failure.take();
        loaded.map(|()| NAME).map_err(|failure| {
            if told.as_ref() != Some(&failure) {
                tracing::warn!(failure, "containers that ask for no AppArmor profile run without one");
            }
            state.failure = Some(failure.clone());
            failure
        })
    }
}

fn parser() -> Option<PathBuf> {
    PARSER_FOLDERS.iter().map(|folder| Path::new(folder).join(PARSER)).find(|program| program.is_file())
}

/// Gives the text to the kernel, over what it has under that name.
async fn load(parser: Option<&Path>) -> Result<(), String> {
    let Some(parser) = parser else {
        return Err(format!("{NAME} can't be loaded: {PARSER} is missing; install the package apparmor"));
    };
    let failed = |words: &str| format!("{NAME} can't be loaded by {}: {words}", parser.display());
    match tokio::time::timeout(PARSER_TIME, feed(parser)).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let words: String = words.trim().chars().take(WORDS_MAX).collect();
            Err(failed(&format!("{}: {words}", output.status)))
        }
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed(&format!("it took more than {} s", PARSER_TIME.as_secs()))),
    }
}

/// Runs the parser with the text on its input. What it compiles is kept nowhere: there is nothing of it to clean up.
async fn feed(parser: &Path) -> std::io::Result<std::process::Output> {
    let mut command = tokio::process::Command::new(parser);
    command.args(["--replace", "--skip-cache"]).kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why itself.
        let _ = stdin.write_all(TEXT.as_bytes()).await;
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_parser_gets_the_text_and_its_words_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("parser");
        let seen = folder.path().join("seen");
        // Written by a process of its own: no other child of the tests holds it open when it is run.
        let script = |last: &str| {
            let text = format!("#!/bin/sh\necho \"$@\" > {0}\ncat >> {0}\n{last}\n", seen.display());
            let writer = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
            let mut shell = std::process::Command::new("sh");
            assert!(shell.args(["-c", writer, "sh", &text]).arg(&program).status().unwrap().success());
        };
        script("exit 0");
        load(Some(&program)).await.unwrap();
        assert_eq!(std::fs::read_to_string(&seen).unwrap(), format!("--replace --skip-cache\n{TEXT}"));
        script("echo permission denied >&2; exit 4");
        let said = load(Some(&program)).await.unwrap_err();
        assert!(said.ends_with("exit status: 4: permission denied"), "{said}");
        let said = load(None).await.unwrap_err();
        assert!(said.contains("install the package apparmor"), "{said}");
        assert!(TEXT.contains(&format!("\nprofile {NAME} ")));
    }
}
