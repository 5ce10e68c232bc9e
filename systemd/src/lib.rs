//! systemd as the maker of cgroups: slices and scopes with their limits, asked for over D-Bus.
//!
//! [`properties`] is pure: what a unit is told so that its cgroup has given limits, and has them still after systemd has
//! read its files again. [`Manager`] carries it out. Each call has a connection and a deadline of its own, so nothing is
//! kept between calls and a bus that was restarted is noticed by nobody.

#[cfg(feature = "bus")]
mod bus;
mod error;
mod manager;
pub mod properties;

pub use error::SystemdError;
pub use manager::Manager;
