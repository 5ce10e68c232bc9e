//! Events of the node and its pods: counted, limited, written in the background; recording never blocks.

mod correlator;
mod recorder;

pub use recorder::EventRecorder;
