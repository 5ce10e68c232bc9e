//! Plugins: the registration socket watcher and the registered drivers.
