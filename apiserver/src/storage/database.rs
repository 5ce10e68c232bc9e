//! Opening the file: made when missing, checked when there, refused when damaged.

use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::{CACHE_BYTES, StoreError};

/// `<resource>/<namespace>/<name>` to revision and JSON.
pub(super) const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
/// Objects whose JSON was damaged, for a person to look at.
const DAMAGED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("damaged");
/// Numbers about the store.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The newest revision, in [`META`].
pub(super) const REVISION: &str = "revision";
/// Version of the layout, in [`META`].
const LAYOUT: &str = "layout";
/// The layout that this program reads and writes.
const LAYOUT_VERSION: u64 = 1;
/// Revisions skipped at each start: more than may have been shown but not yet synced when the machine stopped.
const REVISION_STEP: u64 = super::writer::UNSYNCED_MAX + 100;
/// A larger file is not checked page by page at the start, in bytes.
const CHECK_BYTES_MAX: u64 = 256 << 20;

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// The revision to start from.
    pub revision: u64,
    /// Keys of single objects that were damaged and taken out.
    pub damaged_objects: Vec<String>,
}

/// Opens the file, or makes it where it is missing. A damaged one is refused and left for a person: with an empty API
/// the node would end every pod that runs.
pub(super) fn open(path: &Path) -> Result<(Database, Opened), StoreError> {
    let failed = |reason: String| StoreError::Failed { path: path.into(), reason };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(format!("make its folder: {error}")))?;
    }
    let opened = if path.exists() { open_checked(path) } else { make(path) };
    opened.map_err(|trouble| match trouble {
        Trouble::Damaged(reason) => StoreError::Damaged { path: path.into(), reason },
        Trouble::Other(error) => error,
    })
}

/// Makes the file under another name first: one that was being made when the process was killed is not taken for damage.
fn make(path: &Path) -> Result<(Database, Opened), Trouble> {
    let other = |error: std::io::Error| {
        Trouble::Other(StoreError::Failed { path: path.into(), reason: format!("make it: {error}") })
    };
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(other(error)),
        _ => {}
    }
    drop(reopen(&fresh).map_err(Trouble::Other)?);
    std::fs::rename(&fresh, path).map_err(other)?;
    open_checked(path)
}

/// Opens the file, or makes it, without looking through it.
pub(super) fn reopen(path: &Path) -> Result<Database, StoreError> {
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(path)
        .map_err(|error| StoreError::Failed { path: path.into(), reason: error.to_string() })
}

enum Trouble {
    Damaged(String),
    Other(StoreError),
}

fn open_checked(path: &Path) -> Result<(Database, Opened), Trouble> {
    // A damaged page may also end in a panic of the database's code: that must not end the program.
    let opening = std::panic::AssertUnwindSafe(|| open_and_look_through(path));
    std::panic::catch_unwind(opening).unwrap_or_else(|_| Err(Trouble::Damaged("it can't be read".into())))
}

fn open_and_look_through(path: &Path) -> Result<(Database, Opened), Trouble> {
    let other = |reason: String| Trouble::Other(StoreError::Failed { path: path.into(), reason });
    let mut database = match Builder::new().set_cache_size(CACHE_BYTES).create(path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(Trouble::Other(StoreError::InUse(path.into()))),
        Err(DatabaseError::Storage(StorageError::Io(error))) if !is_damage(&error) => {
            return Err(other(error.to_string()));
        }
        Err(DatabaseError::UpgradeRequired(version)) => {
            return Err(other(format!(
                "it has the old file format {version}; convert it with the version that wrote it"
            )));
        }
        Err(error) => return Err(Trouble::Damaged(error.to_string())),
    };
    let bytes = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or_default();
    if bytes <= CHECK_BYTES_MAX {
        database.check_integrity().map_err(|error| Trouble::Damaged(error.to_string()))?;
    }
    let opened = prepare(&database).map_err(|error| Trouble::Damaged(error.to_string()))?;
    match opened {
        Ok(opened) => Ok((database, opened)),
        Err(layout) => Err(other(format!(
            "it was written by a newer version (layout {layout}, this one knows {LAYOUT_VERSION}); use that version or another folder"
        ))),
    }
}

fn is_damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

/// Makes the tables, takes damaged objects out and steps the revision. The inner error is a layout that is too new.
fn prepare(database: &Database) -> Result<Result<Opened, u64>, redb::Error> {
    let mut opened = Opened { revision: 1, ..Opened::default() };
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        let mut objects = write.open_table(OBJECTS)?;
        if let Some(layout) = meta.get(LAYOUT)?.map(|value| value.value())
            && layout > LAYOUT_VERSION
        {
            return Ok(Err(layout));
        }
        if let Some(revision) = meta.get(REVISION)?.map(|value| value.value()) {
            opened.revision = revision + REVISION_STEP;
        }
        for entry in objects.iter()? {
            let (key, value) = entry?;
            if serde_json::from_slice::<serde::de::IgnoredAny>(value.value().1).is_err() {
                opened.damaged_objects.push(key.value().to_string());
            }
        }
        let mut damaged = write.open_table(DAMAGED)?;
        for key in &opened.damaged_objects {
            tracing::error!(key, "a stored object is damaged and has been taken out");
            if let Some(value) = objects.remove(key.as_str())? {
                damaged.insert(key.as_str(), value.value().1)?;
            }
        }
        meta.insert(LAYOUT, LAYOUT_VERSION)?;
        meta.insert(REVISION, opened.revision)?;
    }
    write.commit()?;
    // A read proves that what was written can be found.
    database.begin_read()?.open_table(META)?;
    Ok(Ok(opened))
}
