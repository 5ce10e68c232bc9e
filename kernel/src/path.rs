//! Path resolution that never leaves a root.
