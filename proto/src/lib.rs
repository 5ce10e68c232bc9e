//! Wire contracts: CRI, CSI and plugin registration, generated from the project's own `.proto` text.
