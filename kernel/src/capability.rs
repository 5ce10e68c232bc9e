//! Capability sets by name and number.
