//! One run: the agent lives and dies in a world of faults, then the faults stop and all must come right.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_api::ApiClients;
use orlop_agent_api::mirror::ApiMirrorPods;
use orlop_agent_api::node_source::NodeRecord;
use orlop_agent_api::pod_source::follow_pods;
use orlop_agent_api::status::StatusWriter;
use orlop_agent_core::ports::*;
use orlop_agent_core::turns::{Turns, in_turn};
use orlop_agent_pods::{Pace, PodManager, PodPorts, PodsConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::client;
use crate::disk::Disk;
use crate::runtime::SimRuntime;
use crate::settled::{Left, unsettled};
use crate::sim::{Fault, Kind, Sim};
use crate::turns::{Gate, Order};
use crate::user;

/// How long all may take to come right once nothing fails any more, in milliseconds: the longest deadline of a call,
/// the longest back-off, and the slow list.
const PATIENCE: u64 = 1_800_000;
/// How many steps there may be within a millisecond.
const CROWD: u64 = 5_000;
/// How long nothing may be written once all is right.
const QUIET: u64 = 150_000;

/// What a run leaves.
pub struct Outcome {
    pub trace: Vec<String>,
    pub broken: Vec<String>,
    pub steps: u64,
}

/// Ports that matter little here.
struct Rest(Arc<Sim>);

fn missing<'a, T: Send + 'a>(kind: &'static str, name: &'a str) -> PortFuture<'a, Result<T, PortError>> {
    Box::pin(async move { Err(PortError::NotFound { kind, name: name.to_owned() }) })
}

struct NoChanges;

impl ObjectChanges for NoChanges {
    fn next(&mut self) -> PortFuture<'_, (String, String, String)> {
        Box::pin(std::future::pending())
    }
}

impl Objects for Rest {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>> {
        missing("ConfigMap", name)
    }
    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>> {
        missing("Secret", name)
    }
    fn claim<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>> {
        missing("PersistentVolumeClaim", name)
    }
    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>> {
        missing("PersistentVolume", name)
    }
    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>> {
        missing("CSIDriver", name)
    }
    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>> {
        missing("RuntimeClass", name)
    }
    fn services<'a>(&'a self, _: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>> {
        let error =
            |fault: Fault| Err(PortError::Unavailable { what: "list services".into(), message: format!("{fault:?}") });
        Box::pin(self.0.call(Kind::Outside, "services".into(), 30_000, error, |_| Ok(Vec::new())))
    }
    fn token<'a>(&'a self, _: &'a Pod, _: &'a str, _: i64) -> PortFuture<'a, Result<String, PortError>> {
        missing("ServiceAccount", "default")
    }
    fn changes(&self) -> Box<dyn ObjectChanges> {
        Box::new(NoChanges)
    }
}

impl Events for Rest {
    fn record(&self, object: ObjectRef, _: EventType, reason: &str, message: &str) {
        self.0.state().note(&format!("event {} {reason}: {message}", object.name));
    }
}

impl NodeFacts for Rest {
    fn host_ips(&self) -> Vec<IpAddr> {
        vec![IpAddr::from([10, 9, 9, 9])]
    }
    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }
    fn capacity(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }
    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    fn refusal(&self, _: &Pod) -> Option<(String, String)> {
        None
    }
}

/// One life of the agent.
struct Agent {
    gate: Arc<Gate>,
    cancel: CancellationToken,
    view: Arc<dyn NodeView>,
}

fn config(sim: &Arc<Sim>, folder: &Path, gate: &Arc<Gate>) -> PodsConfig {
    let clock = sim.clone();
    let longest = sim.state().laws.longest_wait;
    PodsConfig {
        kubelet_root: folder.join("kubelet"),
        pod_logs_root: folder.join("logs"),
        static_pod_path: Some(folder.join("static")),
        resolv_conf: "".into(),
        hosts_file: folder.join("hosts"),
        log_rotation: None,
        max_restart_period: Duration::try_from(longest).unwrap(),
        pace: Pace {
            clock: Arc::new(move || clock.state().now()),
            threads: false,
            turns: Some(Arc::new(Order(gate.clone()))),
        },
        ..PodsConfig::new("node")
    }
}

fn start_agent(sim: &Arc<Sim>, folder: &Path) -> Agent {
    let gate = Arc::new(Gate::default());
    let turns: Arc<dyn Turns> = Arc::new(Order(gate.clone()));
    let cancel = CancellationToken::new();
    let (client, chance) = (client(sim), sim.clone());
    let clients = ApiClients {
        requests: client.clone(),
        watches: client.clone(),
        heartbeat: client,
        server: "simulation".into(),
        pace: orlop_agent_api::pace::Pace {
            chance: Arc::new(move || chance.state().dice.share()),
            turns: Some(turns.clone()),
        },
    };
    let mut node = Node::default();
    node.metadata.uid = Some("node-uid".into());
    let (_, node) = watch::channel(NodeRecord { synced: true, node: Some(Arc::new(node)) });
    let pods = follow_pods(&clients, "node", cancel.clone());
    let (statuses, _) = StatusWriter::start(clients.clone(), pods.clone(), cancel.clone());
    let (rest, disk) = (Arc::new(Rest(sim.clone())), Arc::new(Disk(sim.clone())));
    let ports = PodPorts {
        runtime: Arc::new(SimRuntime(sim.clone())),
        objects: rest.clone(),
        volumes: disk.clone(),
        events: rest.clone(),
        statuses,
        mirrors: Some(ApiMirrorPods::new(clients, "node", node)),
        cgroups: disk,
        node: rest,
        metrics: Arc::default(),
    };
    let manager = PodManager::new(config(sim, folder, &gate), ports, Some(pods));
    let view = manager.node_view();
    tokio::spawn(in_turn(Some(&turns), "manager", manager.run(cancel.clone())));
    sim.state().note("the agent starts");
    Agent { gate, cancel, view }
}

/// A run under way.
struct Run<'a> {
    sim: Arc<Sim>,
    folder: &'a Path,
    agent: Agent,
    /// Ends of the agent that are still to come.
    ends: u64,
    steps: u64,
    /// Steps since time last moved, and when that was.
    crowd: (u64, u64),
}

impl Run<'_> {
    fn is_broken(&self) -> bool {
        !self.sim.state().laws.broken.is_empty()
    }

    /// Goes on until that time, or until a law is broken.
    async fn until(&mut self, end: u64) {
        while !self.is_broken() && self.sim.state().elapsed() < end {
            self.agent.gate.settle().await;
            let waiting = self.agent.gate.waiting();
            let (due, next) = {
                let state = self.sim.state();
                let next = state.next_event();
                (next.is_some_and(|at| at <= tokio::time::Instant::now()), next)
            };
            if waiting == 0 && !due {
                let limit = self.sim.state().begin() + Duration::from_millis(end);
                let wake = next.map_or(limit, |at| at.min(limit));
                tokio::select! {
                    biased;
                    () = self.agent.gate.arrival.notified() => {}
                    () = tokio::time::sleep_until(wake) => {}
                }
            } else {
                self.step(waiting, due).await;
            }
        }
    }

    /// One task takes a step, or one event happens.
    async fn step(&mut self, waiting: usize, due: bool) {
        let Some((choice, ends)) = self.choose(waiting, due) else { return };
        if let Some((number, name)) = self.agent.gate.grant(choice) {
            self.agent.gate.settle().await;
            self.sim.state().took_step(number, name);
        }
        if ends {
            self.ends -= 1;
            self.end_agent().await;
        }
    }

    /// Which of the waiting tasks takes a step, and whether the agent ends after it; none where an event has happened.
    fn choose(&mut self, waiting: usize, due: bool) -> Option<(usize, bool)> {
        self.steps += 1;
        let mut state = self.sim.state();
        let now = state.elapsed();
        self.crowd = if self.crowd.1 == now { (self.crowd.0 + 1, now) } else { (0, now) };
        if self.crowd.0 > CROWD {
            state.laws.broken(format!("the agent spins: {CROWD} steps without time passing"));
        }
        if due && (waiting == 0 || state.dice.hits(0.5)) {
            state.step();
            return None;
        }
        let choice = state.dice.between(0, waiting as u64 - 1) as usize;
        let ends = self.ends > 0 && state.dice.hits(0.003);
        Some((choice, ends))
    }

    /// The agent is killed, or asked to end; after a while a new one starts.
    async fn end_agent(&mut self) {
        let (asked, reboot, pause) = {
            let mut state = self.sim.state();
            (state.dice.hits(0.2), state.dice.hits(0.15), state.dice.between(0, 20_000))
        };
        if asked {
            self.sim.state().note("the agent is asked to end");
            self.agent.cancel.cancel();
            let ends = std::mem::take(&mut self.ends);
            let now = self.sim.state().elapsed();
            Box::pin(self.until(now + 5_000)).await;
            self.ends = ends;
        }
        self.agent.gate.kill();
        {
            let mut state = self.sim.state();
            state.note(if reboot { "the node is reset" } else { "the agent is dead" });
            state.era += 1;
            state.api.cut_watches();
            state.runtime.cut_news();
            if reboot {
                for uid in state.runtime.left() {
                    state.kill_sandbox(&uid);
                }
            }
        }
        let ends = std::mem::take(&mut self.ends);
        let now = self.sim.state().elapsed();
        Box::pin(self.until(now + pause)).await;
        self.ends = ends;
        self.agent = start_agent(&self.sim, self.folder);
    }

    /// Goes on until all is as it should be.
    async fn settle(&mut self, what: &str) {
        let begin = self.sim.state().elapsed();
        let mut held = 0;
        loop {
            let now = self.sim.state().elapsed();
            self.until(now + 5_000).await;
            if self.is_broken() {
                return;
            }
            let left = Left { folder: self.folder, workers: self.agent.gate.alive("worker"), view: &*self.agent.view };
            let complaint = unsettled(&self.sim.state(), &left);
            match complaint {
                // What the agent has yet to hear of shows a moment later.
                None if held == 8 => return,
                None => held += 1,
                Some(complaint) if now > begin + PATIENCE => {
                    self.sim.state().laws.broken(format!("{what}: never comes right: {complaint}"));
                }
                Some(_) => held = 0,
            }
        }
    }

    /// Nothing is written while nothing happens.
    async fn stay_quiet(&mut self) {
        let (now, before) = {
            let state = self.sim.state();
            (state.elapsed(), state.trace.len())
        };
        self.until(now + QUIET).await;
        let mut state = self.sim.state();
        let writes = ["call PATCH", "call POST", "call DELETE", "status of"];
        let written: Vec<String> = state.trace[before..]
            .iter()
            .filter(|line| writes.iter().any(|call| line.contains(call)))
            .cloned()
            .collect();
        if !written.is_empty() {
            state.laws.broken(format!("writes to the API while nothing happens: {written:#?}"));
        }
    }

    async fn whole(&mut self) {
        let (chaos, rate, ends) = {
            let mut state = self.sim.state();
            let rate = state.dice.pick(&[0.0, 0.0, 0.02, 0.05, 0.1, 0.2]);
            (state.dice.between(20_000, 90_000), rate, state.dice.pick(&[0, 0, 1, 1, 2, 4]))
        };
        {
            let mut state = self.sim.state();
            (state.rate, state.wild, state.laws.clean) = (rate, true, rate == 0.0);
            state.note(&format!("faults in {rate} of the calls for {chaos} ms, {ends} ends of the agent"));
        }
        self.ends = ends;
        user::plan(&self.sim, self.folder, chaos);
        self.until(chaos).await;
        self.ends = 0;
        {
            let mut state = self.sim.state();
            (state.rate, state.wild) = (0.0, false);
            state.note("nothing fails any more");
        }
        self.settle("with all pods").await;
        self.stay_quiet().await;
        if !self.is_broken() {
            user::clear(&self.sim, self.folder);
            self.settle("without pods").await;
            self.stay_quiet().await;
        }
    }
}

/// Runs one seed.
pub fn simulate(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("static")).unwrap();
    runtime.block_on(async {
        let sim = Sim::new(seed);
        {
            let mut state = sim.state();
            state.runtime.silent = state.dice.hits(0.1);
            let longest = state.dice.pick(&[5, 20, 60, 300]);
            state.laws.longest_wait = SignedDuration::from_secs(longest);
        }
        let agent = start_agent(&sim, folder.path());
        let mut run = Run { sim: sim.clone(), folder: folder.path(), agent, ends: 0, steps: 0, crowd: (0, 0) };
        run.whole().await;
        let steps = run.steps;
        run.agent.gate.kill();
        let mut state = sim.state();
        Outcome { trace: std::mem::take(&mut state.trace), broken: std::mem::take(&mut state.laws.broken), steps }
    })
}
