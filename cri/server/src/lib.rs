//! The CRI server: one file per RPC, stores and recovery.
