//! Volumes: desired and actual mounts, planning, reconciliation, reconstruction and the volume kinds.
