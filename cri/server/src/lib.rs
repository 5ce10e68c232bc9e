//! The CRI server: one file per RPC, stores and recovery.

mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
pub mod image_service;
mod image_status;
