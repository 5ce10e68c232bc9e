//! The node object: registration, status and what pod workers need to know of the node.
//!
//! ```text
//!  runtime probe (1..5 s) ─┐
//!  NodeInputs (watch) ─────┼─> StatusFacts ─ node_status() ─> NodeStatus ─ patch where it differs ─> API server
//!  machine (/proc, /sys) ──┘      [pure]                                   at once, or every 5 min
//! ```

mod addresses;
mod agent;
mod events;
mod facts;
mod identity;
mod labels;
mod machine;
mod patch;
mod refusal;
mod registration;
mod startup;
mod status;

pub use addresses::{AddressError, detect_addresses};
pub use agent::{NodeAgent, NodeConfig};
pub use facts::{ImageFact, NodeInputs, Pressures, RuntimeHandlerFact, RuntimeProbe, RuntimeState, StatusFacts};
pub use identity::{NodeTaint, TaintError, node_name_from_hostname};
pub use labels::{LabelError, parse_labels};
pub use machine::{SystemFacts, read_system};
pub use startup::NodeStartup;
pub use status::node_status;
