//! Pod workers: desired and observed sets, static pods, execution of plans, hooks, probes and orphans.
