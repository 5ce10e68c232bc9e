//! Reading which programs give credentials for registries.

use std::path::{Path, PathBuf};

use orlop_agent_core::credential_providers::{CredentialProvider, check_names, parse_providers};

use crate::config::CredentialProviderPaths;

/// Longest configuration file in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why the programs can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file or folder can't be read.
    #[error("credential programs: {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("credential programs: {path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the field.
        why: String,
    },
}

/// Reads the configuration and looks for the programs. Blocking.
///
/// # Errors
/// [`CredentialsError`] naming the file.
pub(crate) fn load_credential_providers(
    paths: &CredentialProviderPaths,
) -> Result<Vec<CredentialProvider>, CredentialsError> {
    let content = |path: &Path, why: String| CredentialsError::Content { path: path.to_owned(), why };
    let mut all = Vec::new();
    for path in files(&paths.config)? {
        let read = |source| CredentialsError::Read { path: path.clone(), source };
        if std::fs::metadata(&path).map_err(read)?.len() > FILE_MAX {
            return Err(content(&path, format!("is longer than {FILE_MAX} bytes")));
        }
        let text = std::fs::read_to_string(&path).map_err(read)?;
        let document = serde_saphyr::from_str(&text).map_err(|error| content(&path, format!("is no YAML: {error}")))?;
        all.extend(parse_providers(document).map_err(|why| content(&path, why))?);
    }
    check_names(&all).map_err(|why| content(&paths.config, why))?;
    for provider in &all {
        let path = paths.bin_dir.join(&provider.name);
        if !path.is_file() {
            return Err(content(&path, "there is no such program".to_owned()));
        }
    }
    Ok(all)
}

/// The file itself, or the configuration files of the folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, CredentialsError> {
    let read = |source| CredentialsError::Read { path: path.to_owned(), source };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        let known = file.extension().is_some_and(|ending| ["json", "yaml", "yml"].iter().any(|known| ending == *known));
        if known && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() {
        let why = "there is no .yaml, .yml or .json file in the folder".to_owned();
        return Err(CredentialsError::Content { path: path.to_owned(), why });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str) -> String {
        format!(
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n- name: {name}\n  \
             matchImages: [r.example]\n  defaultCacheDuration: 1m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
        )
    }

    #[test]
    fn a_folder_is_read_in_order_and_errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = |config: &Path| CredentialProviderPaths { config: config.to_owned(), bin_dir: "/bin".into() };
        let load = |path: &Path| load_credential_providers(&paths(path)).map_err(|error| error.to_string());
        assert!(load(folder.path()).unwrap_err().contains("no .yaml"));
        std::fs::write(folder.path().join("b.yaml"), provider("sh")).unwrap();
        std::fs::write(folder.path().join("a.yml"), provider("ls")).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
        let names: Vec<String> = load(folder.path()).unwrap().into_iter().map(|provider| provider.name).collect();
        assert_eq!(names, ["ls", "sh"]);
        assert_eq!(load(&folder.path().join("b.yaml")).unwrap().len(), 1);
        for (text, word) in [
            (provider("sh"), "named"),
            (provider("no-such-program"), "no-such-program"),
            ("- a".to_owned(), "c.json"),
            ("{".to_owned(), "c.json"),
        ] {
            std::fs::write(folder.path().join("c.json"), &text).unwrap();
            let error = load(folder.path()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(load(Path::new("/nonexistent")).unwrap_err().contains("/nonexistent"));
    }
}
