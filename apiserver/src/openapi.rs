//! The schemas of all kinds: their definitions, the check of documents against them, and the OpenAPI pages.

mod definitions;
mod gnostic;
mod normalize;
mod pages;
mod paths;
mod schemas;
mod zero_fields;

pub use definitions::{definitions, referred};
pub use normalize::{Report, normalize};
pub use pages::answer;
