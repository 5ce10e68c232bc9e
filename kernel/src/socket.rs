//! Unix sockets that pass file descriptors.
