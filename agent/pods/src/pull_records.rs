//! Records of what images were pulled with, in the kubelet's folder and format: `image_manager/pulling` and `pulled`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use orlop_agent_core::pull_records::{
    ImageAccess, PullCredentials, PullIntent, PullSecret, PulledRecord, VerificationPolicy, image_access, recorded,
};
use orlop_agent_core::runtime::Runtime;
use orlop_kernel::file::{self, Outlives};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::pace::Pace;
use crate::shared::lock;

/// Longest record in bytes.
const RECORD_MAX: u64 = 1 << 20;
/// Beginning of the names of records.
const PREFIX: &str = "sha256-";

/// The records of a node.
#[derive(Debug)]
pub(crate) struct PullRecords {
    pulling: PathBuf,
    pulled: PathBuf,
    policy: VerificationPolicy,
    pace: Pace,
    /// Pulls under way, by image. Held while records are changed.
    under_way: Mutex<HashMap<String, u32>>,
}

impl PullRecords {
    /// Records below the kubelet's root.
    pub(crate) fn new(root: &Path, policy: VerificationPolicy, pace: Pace) -> PullRecords {
        let folder = root.join("image_manager");
        PullRecords {
            pulling: folder.join("pulling"),
            pulled: folder.join("pulled"),
            policy,
            pace,
            under_way: Mutex::default(),
        }
    }

    /// Whether a pod with these secrets may use an image that is there. A record that can't be read grants nothing.
    pub(crate) fn access(&self, image: &str, image_ref: &str, secrets: &[PullSecret]) -> ImageAccess {
        let under_way = lock(&self.under_way);
        let record = read::<PulledRecord>(&place(&self.pulled, image_ref));
        let (damaged, record) = match record {
            Ok(record) => (false, record),
            Err(error) => {
                tracing::warn!(image, %error, "the record of an image's credentials can't be read");
                (true, None)
            }
        };
        let intended = damaged || under_way.contains_key(image) || place(&self.pulling, image).exists();
        image_access(&self.policy, image, record.as_ref(), intended, secrets)
    }

    /// Notes that an image is about to be pulled.
    pub(crate) fn intend(&self, image: &str) -> std::io::Result<()> {
        let mut under_way = lock(&self.under_way);
        write(&place(&self.pulling, image), &PullIntent::new(image))?;
        *under_way.entry(image.to_owned()).or_insert(0) += 1;
        Ok(())
    }

    /// Notes what opened an image that is there by now, and that its pull is over.
    pub(crate) fn pulled(&self, image: &str, image_ref: &str, credentials: PullCredentials) {
        match self.note(image, image_ref, Some(credentials)) {
            Ok(()) => self.over(image),
            // The intent stays and tells the next start that the image was pulled here.
            Err(error) => tracing::warn!(image, %error, "the credentials of an image can't be recorded"),
        }
    }

    /// A pull has ended, well or not.
    pub(crate) fn over(&self, image: &str) {
        let mut under_way = lock(&self.under_way);
        if let Some(count) = under_way.get_mut(image) {
            *count -= 1;
            if *count > 0 {
                return;
            }
            under_way.remove(image);
        }
        if let Err(error) = file::remove(&place(&self.pulling, image)) {
            tracing::warn!(image, %error, "the note of a pull can't be removed");
        }
    }

    /// Adds credentials to the record of an image.
    pub(crate) fn note(
        &self,
        image: &str,
        image_ref: &str,
        credentials: Option<PullCredentials>,
    ) -> std::io::Result<()> {
        let _held = lock(&self.under_way);
        let path = place(&self.pulled, image_ref);
        let known = read::<PulledRecord>(&path).unwrap_or_default();
        match recorded(known.as_ref(), image, image_ref, credentials, self.pace.now()) {
            Some(record) => write(&path, &record),
            None => Ok(()),
        }
    }

    /// After a start: images whose pull was cut short count as pulled here.
    pub(crate) async fn recover(self: Arc<Self>, runtime: &dyn Runtime) {
        let this = self.clone();
        let found = self.pace.blocking(move || {
            for folder in [&this.pulling, &this.pulled] {
                if let Err(error) = file::sweep(folder) {
                    tracing::warn!(?folder, %error, "half-written records of pulls can't be removed");
                }
            }
            all::<PullIntent>(&this.pulling)
        });
        let found = found.await;
        for intent in found.unwrap_or_default() {
            match runtime.image(&intent.image, "").await {
                Ok(Some(image)) if self.note(&intent.image, &image.id, None).is_ok() => self.over(&intent.image),
                Ok(None) => self.over(&intent.image),
                _ => {}
            }
        }
    }

    /// After a start, beside everything else: records of images that are gone go.
    pub(crate) async fn prune(self: Arc<Self>, runtime: &dyn Runtime) {
        let this = self.clone();
        let found = self.pace.blocking(move || all::<PulledRecord>(&this.pulled)).await;
        for record in found.unwrap_or_default() {
            if let Ok(None) = runtime.image(&record.image_ref, "").await
                && let Err(error) = file::remove(&place(&self.pulled, &record.image_ref))
            {
                tracing::warn!(image = record.image_ref, %error, "the record of an image that is gone can't be removed");
            }
        }
    }
}

/// The place of a record: names of images don't go into names of files.
fn place(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{PREFIX}{}", hex::encode(Sha256::digest(name.as_bytes()))))
}

fn read<T: DeserializeOwned>(path: &Path) -> std::io::Result<Option<T>> {
    let at = |error: &dyn std::fmt::Display| std::io::Error::other(format!("{}: {error}", path.display()));
    let Some(bytes) = file::read(path, RECORD_MAX).map_err(|error| at(&error))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| at(&error))
}

/// All records of a folder that can be read.
fn all<T: DeserializeOwned>(folder: &Path) -> Vec<T> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)));
    named.filter_map(|entry| read(&entry.path()).ok().flatten()).collect()
}

fn write<T: Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        crate::directories::make_folder(folder, 0o700)?;
    }
    let text = serde_json::to_vec(record).map_err(std::io::Error::other)?;
    file::replace(path, &text, 0o600, Outlives::Power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(hash: &str) -> PullSecret {
        PullSecret { uid: "u".into(), namespace: "ns".into(), name: "s".into(), credential_hash: hash.into() }
    }

    #[test]
    fn a_pull_leaves_a_record_and_no_intent() {
        let folder = tempfile::tempdir().unwrap();
        let records = PullRecords::new(folder.path(), VerificationPolicy::default(), Pace::default());
        assert_eq!(records.access("a:1", "sha256:1", &[]), ImageAccess::Granted, "preloaded");
        records.intend("a:1").unwrap();
        records.intend("a:1").unwrap();
        assert_eq!(records.access("a:1", "sha256:1", &[]), ImageAccess::Denied, "being pulled");
        let credentials = PullCredentials { kubernetes_secrets: vec![secret("h")], ..PullCredentials::default() };
        records.pulled("a:1", "sha256:1", credentials);
        assert!(place(&records.pulling, "a:1").exists(), "the other pull goes on");
        records.over("a:1");
        assert!(!place(&records.pulling, "a:1").exists());
        assert_eq!(records.access("a:1", "sha256:1", &[]), ImageAccess::Denied);
        let again = PullRecords::new(folder.path(), VerificationPolicy::default(), Pace::default());
        assert_eq!(again.access("a:1", "sha256:1", &[secret("h")]), ImageAccess::Granted);
        std::fs::write(place(&records.pulled, "sha256:1"), "{").unwrap();
        assert_eq!(again.access("a:1", "sha256:1", &[secret("h")]), ImageAccess::Denied, "damaged");
    }
}
