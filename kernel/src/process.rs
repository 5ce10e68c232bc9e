//! Processes: clone3, pidfd, wait, spawn.
