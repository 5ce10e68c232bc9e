//! The Kubernetes client side of the agent: pod source, caches, status writer, events, lease, tokens.
