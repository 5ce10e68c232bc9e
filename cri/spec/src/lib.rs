//! Pure translation of validated CRI requests into OCI runtime specifications.
