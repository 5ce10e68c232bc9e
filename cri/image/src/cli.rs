//! `orlop image load|pull|list|rm`: through the daemon that owns the store, or on the store itself when none runs.

mod bars;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::admin::{AdminClient, AdminError, Answer, ImageSummary, Request};
use crate::error::ImageError;
use crate::images::{ImageConfig, Images};
use crate::registry::Credentials;

use bars::PullBars;

/// Where to look for images.
#[derive(Clone, Debug)]
pub struct CliConfig {
    /// Admin socket of the daemon.
    pub socket: PathBuf,
    /// The store, used directly when no daemon listens.
    pub images: ImageConfig,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The daemon refused it or can't be reached.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The store refused it.
    #[error("{0}")]
    Image(Arc<ImageError>),
    /// The path of an archive can't be resolved.
    #[error("{path}: {source}", path = path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no such image.
    #[error("image \"{0}\" not found: `orlop image list` shows what there is")]
    NotFound(String),
    /// The daemon answered something else than was asked.
    #[error("the daemon gave an unexpected answer: are both programs of the same version?")]
    Unexpected,
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        Self::Image(Arc::new(error))
    }
}

/// Imports an archive; returns the image ids.
pub async fn load(config: &CliConfig, path: &Path, names: Vec<String>) -> Result<Vec<String>, CliError> {
    let path = std::fs::canonicalize(path).map_err(|source| CliError::Path { path: path.to_path_buf(), source })?;
    if let Some(daemon) = AdminClient::connect(&config.socket).await? {
        return match daemon.ask(&Request::Load { path, names }, |_| {}).await? {
            Answer::Images { ids } => Ok(ids),
            _ => Err(CliError::Unexpected),
        };
    }
    Ok(open(config)?.import(&path, names).await?)
}

/// Pulls an image with progress bars on stderr; returns its id.
pub async fn pull(config: &CliConfig, reference: &str, credentials: Option<Credentials>) -> Result<String, CliError> {
    let mut bars = PullBars::new();
    if let Some(daemon) = AdminClient::connect(&config.socket).await? {
        let request = Request::Pull { reference: reference.to_owned(), credentials };
        let answer = daemon.ask(&request, |progress| bars.show(progress)).await?;
        return match answer {
            Answer::Images { ids } => ids.into_iter().next().ok_or(CliError::Unexpected),
            _ => Err(CliError::Unexpected),
        };
    }
    let pull = open(config)?.start_pull(reference, credentials)?;
    let mut progress = pull.progress();
    let mut finish = std::pin::pin!(pull.finish());
    loop {
        tokio::select! {
            outcome = &mut finish => {
                bars.show(&progress.borrow());
                return outcome.map_err(CliError::Image);
            }
            Ok(()) = progress.changed() => bars.show(&progress.borrow_and_update()),
        }
    }
}

/// All images.
pub async fn list(config: &CliConfig) -> Result<Vec<ImageSummary>, CliError> {
    if let Some(daemon) = AdminClient::connect(&config.socket).await? {
        return match daemon.ask(&Request::List, |_| {}).await? {
            Answer::List { images } => Ok(images),
            _ => Err(CliError::Unexpected),
        };
    }
    Ok(open(config)?.list().into_iter().map(Into::into).collect())
}

/// Removes an image by name or id.
pub async fn remove(config: &CliConfig, name: &str) -> Result<(), CliError> {
    let found = if let Some(daemon) = AdminClient::connect(&config.socket).await? {
        match daemon.ask(&Request::Remove { name: name.to_owned() }, |_| {}).await? {
            Answer::Removed { found } => found,
            _ => return Err(CliError::Unexpected),
        }
    } else {
        open(config)?.remove(name).await?
    };
    if found { Ok(()) } else { Err(CliError::NotFound(name.to_owned())) }
}

/// A table of images as `orlop image list` prints it.
pub fn table(images: &[ImageSummary]) -> String {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(13).collect();
        let size = indicatif::HumanBytes(image.size_bytes).to_string();
        let mut names: Vec<String> = image.repo_tags.clone();
        if names.is_empty() {
            names = image.repo_digests.clone();
        }
        if names.is_empty() {
            names.push("<none>".into());
        }
        rows.extend(names.into_iter().map(|name| [name, id.clone(), size.clone()]));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    rows.iter().map(|[name, id, size]| format!("{name:first$}   {id:second$}   {size}\n")).collect()
}

fn open(config: &CliConfig) -> Result<Arc<Images>, CliError> {
    Ok(Arc::new(Images::open(config.images.clone())?))
}
