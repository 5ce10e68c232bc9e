//! The embedded single-node Kubernetes API server.
//!
//! A request goes through [`rest`]: its path names a row of the [`registry`], [`auth`] says who asks and whether they
//! may, [`admission`] fills in and checks what is written, [`storage`] keeps it, and [`watch`] tells everybody else.
//! What Kubernetes' controller manager and scheduler do for one node, [`controllers`] do in the same process.

pub mod admission;
pub mod api;
pub mod auth;
pub mod config;
pub mod controllers;
pub mod discovery;
pub mod document;
pub mod error;
pub mod health;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod pki;
pub mod protobuf;
pub mod proxy;
pub mod quantity;
pub mod registry;
pub mod rest;
mod server;
pub mod storage;
pub mod table;
pub mod watch;

pub use config::ApiServerConfig;
pub use server::{ApiServerError, serve};
