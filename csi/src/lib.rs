//! The CSI driver for node-local storage.
