//! systemd as the maker of cgroups: slices and scopes with their limits, asked for over D-Bus.
//!
//! [`properties`] is pure: what a unit is told so that its cgroup has given limits, and has them still after systemd has
//! read its files again. [`Manager`] carries it out. Each call has a connection and a deadline of its own, so nothing is
//! kept between calls and a bus that was restarted is noticed by nobody.

//!
//! [`Logind`] is the way to whoever knows that the machine is about to go down: systemd-logind, or elogind where there is no
//! systemd. It has one connection, which it listens on.

#[cfg(feature = "bus")]
mod bus;
mod error;
mod logind;
#[cfg(feature = "bus")]
mod logind_bus;
mod manager;
pub mod properties;

pub use error::{LogindError, SystemdError};
pub use logind::{DelayLock, Logind, ShutdownNews, Shutdowns};
pub use manager::Manager;
