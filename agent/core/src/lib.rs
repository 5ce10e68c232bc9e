//! The law of the pod: pure planning from desired and observed state. No tokio, no file system, no clock.

pub mod ports;
