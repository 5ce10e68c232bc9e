//! Resources: the cgroup tree, allocatable, container and image garbage collection.
