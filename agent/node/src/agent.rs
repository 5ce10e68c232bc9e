//! The loops of the node: asking the runtime, registering, reporting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, Patch, PatchParams};
use orlop_agent_core::ports::{EventType, Events, HandlerFeatures, NodeFacts};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::events::{node_reference, status_events};
use crate::facts::{ImageFact, NodeInputs, RuntimeProbe, RuntimeState, StatusFacts};
use crate::identity::NodeTaint;
use crate::machine::SystemFacts;
use crate::patch::{says_something_new, status_patch};
use crate::refusal::refusal;
use crate::registration::{NodeRequestError, register, within};
use crate::startup::NodeStartup;
use crate::status::node_status;

/// How often the runtime is asked (kubelet's runtime-up check), and how often before it first was ready.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_INTERVAL_FIRST: Duration = Duration::from_millis(250);
/// A runtime that has not answered for this long is down.
const RUNTIME_DOWN_AFTER: Duration = Duration::from_secs(30);
/// How often the images are listed.
const IMAGES_INTERVAL: Duration = Duration::from_secs(30);
/// Changes that come this close together are reported as one.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// Tries of one report (kubelet's nodeStatusUpdateRetry).
const REPORT_TRIES: u32 = 5;
/// Back-off of the registration.
const REGISTER_FIRST: Duration = Duration::from_millis(100);
const REGISTER_LONGEST: Duration = Duration::from_secs(7);

/// What the node is told at start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Name of the machine.
    pub hostname: String,
    /// Addresses asked for by configuration; empty when they were found out.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of the node, the main one first.
    pub host_ips: Vec<IpAddr>,
    /// Labels to register with, besides the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Taints to register with.
    pub taints: Vec<NodeTaint>,
    /// Register as unschedulable.
    pub unschedulable: bool,
    /// `providerID`; may be empty.
    pub provider_id: String,
    /// Whether to register at all (`registerNode`).
    pub register: bool,
    /// Port of the kubelet's server.
    pub kubelet_port: u16,
    /// Version as nodes report it (`v1.36.3`).
    pub kubelet_version: String,
    /// How many images to report; negative for all.
    pub images_max: i32,
    /// How often the status is computed (`nodeStatusUpdateFrequency`).
    pub update_interval: Duration,
    /// How often it is reported though nothing changed (`nodeStatusReportFrequency`).
    pub report_interval: Duration,
    /// The machine's identity.
    pub system: SystemFacts,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            hostname: String::new(),
            node_ips: Vec::new(),
            host_ips: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            provider_id: String::new(),
            register: true,
            kubelet_port: 10250,
            kubelet_version: String::new(),
            images_max: 50,
            update_interval: Duration::from_secs(10),
            report_interval: Duration::from_secs(300),
            system: SystemFacts::default(),
        }
    }
}

/// What the runtime last said.
#[derive(Clone, Debug, Default)]
struct RuntimeView {
    state: RuntimeState,
    answered: Option<Instant>,
    images: Vec<ImageFact>,
}

impl RuntimeView {
    fn problem(&self) -> Option<String> {
        match self.answered {
            None => Some("container runtime status check may not have completed yet".to_owned()),
            Some(at) if at.elapsed() > RUNTIME_DOWN_AFTER => Some("container runtime is down".to_owned()),
            Some(_) => None,
        }
    }

    fn is_ready(&self) -> bool {
        self.problem().is_none() && self.state.runtime_problem.is_none() && self.state.network_problem.is_none()
    }
}

/// The node: keeps the Node object, and answers what pod workers ask of it.
pub struct NodeAgent {
    config: NodeConfig,
    inputs: watch::Receiver<NodeInputs>,
    probe: Arc<dyn RuntimeProbe>,
    events: Arc<dyn Events>,
    runtime: watch::Sender<RuntimeView>,
    /// The Node object as the API server has it.
    object: watch::Sender<Option<Arc<Node>>>,
    startup: Arc<NodeStartup>,
}

impl NodeAgent {
    /// A node that nobody knows of yet.
    pub fn new(
        config: NodeConfig,
        inputs: watch::Receiver<NodeInputs>,
        probe: Arc<dyn RuntimeProbe>,
        events: Arc<dyn Events>,
        startup: Arc<NodeStartup>,
    ) -> Arc<Self> {
        let (runtime, object) = (watch::Sender::default(), watch::Sender::default());
        Arc::new(Self { config, inputs, probe, events, runtime, object, startup })
    }

    /// Tells the node how the API server has it; none when there is no such object.
    pub fn observe(&self, node: Option<Arc<Node>>) {
        let was = self.object.borrow().as_ref().map(|node| is_unschedulable(node));
        let is = node.as_ref().map(|node| is_unschedulable(node));
        if let (Some(was), Some(is)) = (was, is)
            && was != is
        {
            let reason = if is { "NodeNotSchedulable" } else { "NodeSchedulable" };
            self.record(EventType::Normal, reason, &format!("Node {} status is now: {reason}", self.config.node_name));
        }
        self.object.send_replace(node);
    }

    /// Whether the runtime and its network are ready for pods.
    pub fn runtime_ready(&self) -> bool {
        self.runtime.borrow().is_ready()
    }

    /// Runs until cancelled; without a client the runtime is watched and nothing reported.
    pub async fn serve(self: Arc<Self>, client: Option<kube::Client>, cancel: CancellationToken) {
        let reporting = async {
            match client {
                Some(client) => self.report(Api::all(client)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.watch_runtime() => {}
            () = reporting => {}
        }
    }

    /// Records an event about the node.
    pub fn record(&self, event_type: EventType, reason: &str, message: &str) {
        self.events.record(node_reference(&self.config.node_name), event_type, reason, message);
    }

    async fn watch_runtime(&self) {
        let mut listed: Option<Instant> = None;
        let mut failing = false;
        loop {
            match self.probe.state().await {
                Ok(state) => {
                    if std::mem::take(&mut failing) {
                        info!("the container runtime answers again");
                    }
                    self.runtime.send_modify(|view| {
                        view.state = state;
                        view.answered = Some(Instant::now());
                    });
                    if listed.is_none_or(|at| at.elapsed() >= IMAGES_INTERVAL)
                        && let Ok(images) = self.probe.images().await
                    {
                        listed = Some(Instant::now());
                        self.runtime.send_modify(|view| view.images = images);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "the container runtime does not answer");
                    }
                }
            }
            let ready = self.runtime.borrow().is_ready();
            tokio::time::sleep(if ready { PROBE_INTERVAL } else { PROBE_INTERVAL_FIRST }).await;
        }
    }

    fn facts(&self) -> StatusFacts {
        let runtime = self.runtime.borrow().clone();
        StatusFacts {
            hostname: self.config.hostname.clone(),
            addresses: self.config.host_ips.clone(),
            kubelet_port: i32::from(self.config.kubelet_port),
            kubelet_version: self.config.kubelet_version.clone(),
            system: self.config.system.clone(),
            runtime_problem: runtime.problem(),
            runtime: runtime.state,
            images: runtime.images,
            images_max: self.config.images_max,
            inputs: self.inputs.borrow().clone(),
        }
    }

    async fn report(&self, api: Api<Node>) {
        let mut latest = self.register(&api).await;
        self.record(EventType::Normal, "Starting", "Starting kubelet.");
        let (mut inputs, mut runtime, mut object) =
            (self.inputs.clone(), self.runtime.subscribe(), self.object.subscribe());
        let mut reported: Option<Instant> = None;
        let mut failing = false;
        loop {
            inputs.mark_unchanged();
            runtime.mark_unchanged();
            let observed = object.borrow_and_update().clone();
            if let Some(observed) = observed.filter(|node| version(node) > version(&latest)) {
                latest = (*observed).clone();
            }
            match self.report_once(&api, &mut latest, &mut reported).await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    warn!(%error, "the status of the node can't be reported");
                    failing = true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(self.config.update_interval) => {}
                Ok(()) = inputs.changed() => tokio::time::sleep(SETTLE_TIME).await,
                () = self.runtime_turned(&mut runtime) => tokio::time::sleep(SETTLE_TIME).await,
                () = becomes_newer(&mut object, version(&latest)) => tokio::time::sleep(SETTLE_TIME).await,
            }
        }
    }

    /// Waits until the runtime says something else than before; that it has answered again is nothing else.
    async fn runtime_turned(&self, runtime: &mut watch::Receiver<RuntimeView>) {
        let before = runtime.borrow_and_update().clone();
        let differs = |view: &RuntimeView| {
            view.state != before.state || view.images != before.images || view.is_ready() != before.is_ready()
        };
        if runtime.wait_for(differs).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn register(&self, api: &Api<Node>) -> Node {
        let mut delay = REGISTER_FIRST;
        let mut complained = false;
        loop {
            let result = if self.config.register {
                self.startup.tries(Instant::now());
                let status = node_status(&self.facts(), &NodeStatus::default(), Timestamp::now());
                register(api, &self.config, status).await
            } else {
                within("get Node", api.get(&self.config.node_name)).await.map(|node| (node, false))
            };
            match result {
                Ok((node, is_new)) => {
                    if is_new {
                        self.startup.registered(Instant::now());
                    }
                    info!(node = %self.config.node_name, "the node is registered");
                    return node;
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!(%error, "the node can't be registered yet; it will be tried again");
                    }
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(REGISTER_LONGEST);
                }
            }
        }
    }

    async fn report_once(
        &self,
        api: &Api<Node>,
        latest: &mut Node,
        reported: &mut Option<Instant>,
    ) -> Result<(), NodeRequestError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let old = latest.status.clone().unwrap_or_default();
            let new = node_status(&self.facts(), &old, Timestamp::now());
            let due = reported.is_none_or(|at| at.elapsed() >= self.config.report_interval);
            if !due && !says_something_new(&old, &new) {
                return Ok(());
            }
            let (params, patch) = (PatchParams::default(), Patch::Strategic(status_patch(&old, &new)));
            match within("patch status of Node", api.patch_status(&self.config.node_name, &params, &patch)).await {
                Ok(node) => {
                    // Not of the patch but of what the node was before: a restart of the agent is no event.
                    let events = status_events(&self.config.node_name, &old, &new);
                    for (event_type, reason, message) in events {
                        self.record(event_type, reason, &message);
                    }
                    if is_ready(&new) {
                        self.startup.ready(Instant::now());
                    }
                    *latest = node;
                    *reported = Some(Instant::now());
                    return Ok(());
                }
                Err(error) if tries < REPORT_TRIES && error.code() != Some(404) => {
                    tokio::time::sleep(REGISTER_FIRST * tries).await;
                    if let Ok(node) = within("get Node", api.get(&self.config.node_name)).await {
                        *latest = node;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn version(node: &Node) -> u64 {
    node.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Waits until the object is newer than `known`: somebody else has changed it.
async fn becomes_newer(object: &mut watch::Receiver<Option<Arc<Node>>>, known: u64) {
    if object.wait_for(|node| node.as_ref().is_some_and(|node| version(node) > known)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl NodeFacts for NodeAgent {
    fn host_ips(&self) -> Vec<IpAddr> {
        self.config.host_ips.clone()
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.inputs.borrow().allocatable.clone()
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        self.inputs.borrow().capacity.clone()
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.object.borrow().as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_default()
    }

    fn refusal(&self, pod: &Pod) -> Option<(String, String)> {
        refusal(&self.inputs.borrow(), pod)
    }

    fn taints(&self) -> Vec<Taint> {
        let object = self.object.borrow();
        object.as_ref().and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default()
    }

    // Before the runtime has answered once, nothing is refused for what it may well be able to do.
    fn strict_groups(&self) -> bool {
        let view = self.runtime.borrow();
        view.answered.is_none() || view.state.supplemental_groups_policy
    }

    fn handler(&self, name: &str) -> HandlerFeatures {
        let view = self.runtime.borrow();
        let unknown = view.answered.is_none();
        let known = view.state.handlers.iter().find(|handler| handler.name == name);
        HandlerFeatures {
            recursive_read_only: unknown || known.is_some_and(|handler| handler.recursive_read_only_mounts),
            user_namespaces: unknown || known.is_some_and(|handler| handler.user_namespaces),
        }
    }

    fn network_problem(&self) -> Option<String> {
        let problem = self.runtime.borrow().state.network_problem.clone()?;
        Some(format!("container runtime network not ready: NetworkReady=false {problem}"))
    }
}
