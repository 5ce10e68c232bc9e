//! The agent wired together: configuration, flags and start-up.
