//! Who a client is and what it may do.

mod authenticate;
mod authorize;
mod node_rules;
mod reviews;
mod tokens;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use authenticate::{Peer, authenticate};
pub use authorize::{Attributes, Decision, authorize, check_node_write, forbidden};
pub use reviews::review;
pub use tokens::{TokenRequest, Tokens, issue_token};

/// Group of those who may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of every known client.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of every unknown client.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group of nodes.
pub const NODES: &str = "system:nodes";
/// Prefix of the names of nodes.
pub const NODE_PREFIX: &str = "system:node:";
/// Prefix of the names of service accounts.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// UID, when it has one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More facts, such as the pod of a token.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A client that nobody vouches for.
    pub fn anonymous() -> User {
        User { name: "system:anonymous".into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() }
    }

    /// The server itself.
    pub fn server() -> User {
        User { name: "system:apiserver".into(), groups: vec![MASTERS.into(), AUTHENTICATED.into()], ..User::default() }
    }

    /// True when it is in the group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|other| other == group)
    }

    /// The node that it is, if it is one.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }

    /// Namespace and name, if it is a service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')
    }

    /// `userInfo` of reviews.
    pub fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}
