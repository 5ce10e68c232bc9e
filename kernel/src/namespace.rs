//! Namespaces: making, binding to files, joining.
