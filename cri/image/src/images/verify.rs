//! Image verifiers: programs of the administrator that say yes or no to a pull, by containerd's contract.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::error::ImageError;
use crate::program::{Call, quote, run};

/// Media type of what a verifier reads.
const INPUT_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// Largest reason kept, in bytes.
const REASON_BYTES_MAX: usize = 16 * 1024;

/// The programs and their bounds.
#[derive(Clone, Debug)]
pub(super) struct Verifiers {
    /// Folder of the programs; none, or a missing one, lets everything pass.
    pub folder: Option<PathBuf>,
    pub count_max: usize,
    pub timeout: Duration,
}

/// What a name stands for.
pub(super) struct Candidate<'a> {
    /// The normalised reference.
    pub name: &'a str,
    pub digest: String,
    pub media_type: String,
    pub size: u64,
}

impl Verifiers {
    /// Asks every program; the first no, by name, refuses the image.
    pub(super) async fn check(&self, candidate: &Candidate<'_>) -> Result<(), ImageError> {
        let refuse = |verifier: &Path, reason: String| ImageError::Verification {
            image: candidate.name.to_owned(),
            verifier: verifier.to_path_buf(),
            reason,
        };
        let Some(folder) = &self.folder else { return Ok(()) };
        let programs =
            programs_of(folder).map_err(|error| refuse(folder, format!("the folder can't be read: {error}")))?;
        if programs.len() > self.count_max {
            let why = format!("the folder has {} programs, {} at most", programs.len(), self.count_max);
            return Err(refuse(folder, why));
        }
        let answers = programs.iter().map(|program| self.ask(program, candidate));
        for (program, answer) in programs.iter().zip(futures::future::join_all(answers).await) {
            match answer {
                Ok(reason) => {
                    tracing::debug!(image = candidate.name, verifier = %program.display(), reason, "image is accepted")
                }
                Err(reason) => return Err(refuse(program, reason)),
            }
        }
        Ok(())
    }

    async fn ask(&self, program: &Path, candidate: &Candidate<'_>) -> Result<String, String> {
        let input =
            json!({"mediaType": candidate.media_type, "digest": candidate.digest, "size": candidate.size}).to_string();
        let call = Call {
            program: program.as_os_str(),
            arguments: &["-name", candidate.name, "-digest", &candidate.digest, "-stdin-media-type", INPUT_TYPE],
            input: input.as_bytes(),
            output_bytes_max: REASON_BYTES_MAX,
            timeout: self.timeout,
        };
        let ended = run(&call).await.map_err(|error| error.to_string())?;
        if !ended.stderr.is_empty() {
            tracing::debug!(verifier = %program.display(), said = quote(&ended.stderr), "image verifier");
        }
        let reason = quote(&ended.stdout);
        if ended.status.success() {
            return Ok(reason);
        }
        Err(if reason.is_empty() { format!("it gave no reason ({})", ended.status) } else { reason })
    }
}

/// The programs of a folder by name. What is no program can't say yes: it stays in the list, and fails when it is run.
fn programs_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut programs = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    programs.sort();
    if let Some(path) = programs.iter().find(|path| !is_program(path)) {
        let why = format!("{} is no executable file: remove it, or make it one", path.display());
        return Err(std::io::Error::other(why));
    }
    Ok(programs)
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
