//! CNI caller: configuration lists, plugin execution, chains, result cache and garbage collection.
