//! What the runtime says of a pod: sandboxes and containers as values.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;

use crate::runtime::{ContainerSpec, SandboxSpec};

/// State of a container. The order is the order of life: a fact never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerFact {
    /// The runtime has lost track of it. Nothing can be asked of it but to stop and be removed.
    Unknown,
    /// Made, never started. Removed and made again.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
}

impl ContainerFact {
    /// All facts.
    pub const ALL: [ContainerFact; 4] =
        [ContainerFact::Unknown, ContainerFact::Created, ContainerFact::Running, ContainerFact::Exited];

    /// Its name, as the kubelet's metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            ContainerFact::Unknown => "unknown",
            ContainerFact::Created => "created",
            ContainerFact::Running => "running",
            ContainerFact::Exited => "exited",
        }
    }
}

/// A container as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// CRI id.
    pub id: String,
    /// Sandbox that it belongs to.
    pub sandbox_id: String,
    /// Name in the pod.
    pub name: String,
    /// Restart count that it was made with.
    pub attempt: u32,
    /// State.
    pub fact: ContainerFact,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Exit code; 128 + n after signal n.
    pub exit_code: i32,
    /// The runtime's reason (`Completed`, `Error`, `OOMKilled`, ...).
    pub reason: String,
    /// The runtime's message, or the container's termination message once it was read.
    pub message: String,
    /// The termination message was read (or there is none).
    pub message_read: bool,
    /// Image as named in the spec.
    pub image: String,
    /// Image as the runtime resolved it, usually by digest.
    pub image_ref: String,
    /// Log file.
    pub log_path: String,
    /// The kubelet's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Uid, gid and groups of the first process, where the runtime tells.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

impl ObservedContainer {
    /// One as it is known from its making: by what the runtime was asked for.
    pub fn made(
        id: &str,
        sandbox_id: &str,
        spec: &ContainerSpec,
        sandbox: &SandboxSpec,
        now: Timestamp,
    ) -> ObservedContainer {
        ObservedContainer {
            id: id.to_owned(),
            sandbox_id: sandbox_id.to_owned(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            fact: ContainerFact::Created,
            created_at: now,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            message_read: false,
            image: spec.user_image.clone(),
            image_ref: spec.image.clone(),
            log_path: Path::new(&sandbox.log_directory).join(&spec.log_path).to_string_lossy().into_owned(),
            annotations: spec.annotations.clone(),
            user: None,
        }
    }

    /// Whether its process runs.
    pub fn running(&self) -> bool {
        self.fact == ContainerFact::Running
    }

    /// Whether its process has ended.
    pub fn exited(&self) -> bool {
        self.fact == ContainerFact::Exited
    }

    /// The hash of the definition it was made from, as the annotation has it.
    pub fn hash(&self) -> Option<&str> {
        self.annotations.get(crate::labels::CONTAINER_HASH).map(String::as_str)
    }
}

/// A sandbox as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSandbox {
    /// CRI id.
    pub id: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Its network and infra process are there.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Addresses, the main one first; empty with the node's network.
    pub ips: Vec<String>,
    /// It uses the node's network.
    pub host_network: bool,
}

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPod {
    /// Uid of the pod.
    pub uid: String,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Sandboxes, the newest first.
    pub sandboxes: Vec<ObservedSandbox>,
    /// Containers, the newest first.
    pub containers: Vec<ObservedContainer>,
}

impl ObservedPod {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandboxes.first()
    }

    /// Instances of the container of that name, the newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ObservedContainer> {
        self.containers.iter().filter(move |container| container.name == name)
    }

    /// The newest instance of the container of that name.
    pub fn latest<'a>(&'a self, name: &'a str) -> Option<&'a ObservedContainer> {
        self.instances(name).next()
    }

    /// The newest instance of the container of that name in that sandbox.
    pub fn latest_in<'a>(&'a self, sandbox_id: &str, name: &str) -> Option<&'a ObservedContainer> {
        self.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox_id)
    }

    /// Whether nothing is left of the pod.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// Puts sandboxes and containers in order, the newest first.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        self.containers.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
    }

    /// Takes in what was learned of some sandboxes and containers. A container that has exited stays so, a sandbox
    /// that is not ready stays so: news that arrive late or twice do no harm. Absence means nothing here.
    pub fn merge(&mut self, news: ObservedPod) {
        if self.uid.is_empty() {
            self.uid = news.uid;
        }
        if self.name.is_empty() {
            self.name = news.name;
            self.namespace = news.namespace;
        }
        for sandbox in news.sandboxes {
            match self.sandboxes.iter_mut().find(|known| known.id == sandbox.id) {
                Some(known) => {
                    let ready = known.ready && sandbox.ready;
                    let ips = if sandbox.ips.is_empty() { std::mem::take(&mut known.ips) } else { sandbox.ips.clone() };
                    *known = ObservedSandbox { ready, ips, ..sandbox };
                }
                None => self.sandboxes.push(sandbox),
            }
        }
        for container in news.containers {
            match self.containers.iter_mut().find(|known| known.id == container.id) {
                Some(known) if container.fact < known.fact => {}
                Some(known) => {
                    let read = known.message_read && !container.message_read && known.fact == container.fact;
                    let message = read.then(|| std::mem::take(&mut known.message));
                    *known = container;
                    if let Some(message) = message {
                        known.message = message;
                        known.message_read = true;
                    }
                }
                None => self.containers.push(container),
            }
        }
        self.sort();
    }

    /// Forgets a container.
    pub fn remove_container(&mut self, id: &str) {
        self.containers.retain(|container| container.id != id);
    }

    /// Forgets a sandbox and its containers.
    pub fn remove_sandbox(&mut self, id: &str) {
        self.sandboxes.retain(|sandbox| sandbox.id != id);
        self.containers.retain(|container| container.sandbox_id != id);
    }
}
