//! Records on disk: whole or not at all.

use std::path::Path;

/// Writes a record by a new file and a rename. What a record tells dies with the boot, so it is not synced.
pub fn write(file: &Path, record: &[u8]) -> std::io::Result<()> {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, record)?;
    std::fs::rename(&fresh, file)
}
