//! The node's own credentials for registries: files of Docker, in the places where the kubelet looks for them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use orlop_agent_core::images::Keyring;

/// Largest file of credentials.
const FILE_MAX: u64 = 1 << 20;
/// Docker's configuration.
const CONFIG: &str = "config.json";
/// Docker's configuration of long ago, with nothing but credentials.
const LEGACY: &str = ".dockercfg";

/// Folders that are looked into after the kubelet's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFolders {
    /// The agent's working directory.
    pub working: Option<PathBuf>,
    /// The home of its user.
    pub home: Option<PathBuf>,
    /// The root of the file system.
    pub top: Option<PathBuf>,
}

impl CredentialFolders {
    /// Where a kubelet would look if it ran in place of this process.
    pub fn of_process() -> CredentialFolders {
        CredentialFolders {
            working: std::env::current_dir().ok(),
            home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()),
            top: Some("/".into()),
        }
    }

    /// The first `config.json` that is one; without any the first `.dockercfg`. What can't be read is no reason to stop.
    pub(crate) fn read(&self, root: &Path) -> Keyring {
        let mut keyring = Keyring::default();
        let folders = |below: &str| {
            let under = |folder: &Option<PathBuf>| folder.as_ref().map(|folder| folder.join(below));
            [Some(root.to_owned()), self.working.clone(), under(&self.home), under(&self.top)].into_iter().flatten()
        };
        let found = folders(".docker").any(|folder| {
            let path = folder.join(CONFIG);
            read_file(&path).is_some_and(|bytes| told(&path, keyring.add_config(&bytes)))
        });
        if !found {
            let _ = folders("").any(|folder| {
                let path = folder.join(LEGACY);
                read_file(&path).is_some_and(|bytes| told(&path, keyring.add_legacy(&bytes)))
            });
        }
        keyring
    }
}

fn told(path: &Path, understood: bool) -> bool {
    if !understood {
        tracing::warn!(file = %path.display(), "this file should hold credentials for registries, but is not JSON of Docker's form; the next place is looked at");
    }
    understood
}

fn read_file(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= FILE_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_counts_and_the_old_form_comes_last() {
        let config = |user: &str| format!(r#"{{"auths": {{"r.example": {{"username": "{user}", "password": "p"}}}}}}"#);
        let legacy = |user: &str| format!(r#"{{"r.example": {{"username": "{user}", "password": "p"}}}}"#);
        let cases: [(&[(&str, String)], &str); 9] = [
            (&[], ""),
            (&[("root/config.json", config("root")), ("working/config.json", config("working"))], "root"),
            (&[("working/config.json", config("working")), ("home/.docker/config.json", config("home"))], "working"),
            (&[("home/.docker/config.json", config("home")), ("top/.docker/config.json", config("top"))], "home"),
            (&[("top/.docker/config.json", config("top")), ("root/.dockercfg", legacy("old"))], "top"),
            (&[("root/.dockercfg", legacy("root")), ("home/.dockercfg", legacy("home"))], "root"),
            (&[("working/.dockercfg", legacy("working")), ("top/.dockercfg", legacy("top"))], "working"),
            (&[("root/config.json", "nonsense".into()), ("home/.dockercfg", legacy("home"))], "home"),
            // A file without credentials ends the search, as it does with a kubelet.
            (&[("root/config.json", r#"{"auths": {}}"#.into()), ("working/config.json", config("working"))], ""),
        ];
        for (files, want) in cases {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            for (name, text) in files {
                std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
                std::fs::write(at(name), text).unwrap();
            }
            let folders =
                CredentialFolders { working: Some(at("working")), home: Some(at("home")), top: Some(at("top")) };
            let users: Vec<String> =
                folders.read(&at("root")).lookup("r.example/x").into_iter().map(|auth| auth.username).collect();
            assert_eq!(users.join(" "), want, "{files:?}");
        }
    }
}
