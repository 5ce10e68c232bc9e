//! Seccomp filters compiled from profiles.
