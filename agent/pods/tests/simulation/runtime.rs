//! The container runtime: sandboxes and containers that outlive the agent, end by themselves, and obey late or never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orlop_agent_core::containers::{ContainerKind, find_container, restart_policy};
use orlop_agent_core::facts::{ContainerFact, ObservedContainer, ObservedPod, ObservedSandbox};
use orlop_agent_core::images::RegistryAuth;
use orlop_agent_core::ports::{PortFuture, StreamOptions};
use orlop_agent_core::runtime::*;
use tokio::sync::{mpsc, oneshot};

use crate::sim::{Fault, Kind, Sim, State};

/// Deadline of a call in milliseconds (kubelet `runtimeRequestTimeout`, 2 min).
const DEADLINE: u64 = 120_000;

/// How a running container behaves.
#[derive(Default)]
struct Process {
    /// How long it takes to end once it is asked to, in milliseconds; none never does.
    obeys: Option<u64>,
    signalled: bool,
    /// It is about to end by itself.
    ending: bool,
    /// It was started after the agent had given up on its start.
    late: bool,
    /// Who waits for its end.
    waiting: Vec<oneshot::Sender<()>>,
}

/// The reader of one stream of news.
struct Subscriber {
    sender: mpsc::UnboundedSender<RuntimeEvent>,
    /// When the last piece of news reaches it: they keep their order.
    last: u64,
}

#[derive(Default)]
pub struct RuntimeState {
    pods: BTreeMap<String, ObservedPod>,
    processes: BTreeMap<String, Process>,
    images: BTreeSet<String>,
    serial: u64,
    subscriber: Option<Subscriber>,
    /// It has no stream of news.
    pub silent: bool,
}

impl RuntimeState {
    /// Ids of the containers of a pod that run.
    pub fn running(&self, uid: &str) -> Vec<String> {
        let pod = self.pods.get(uid).into_iter();
        pod.flat_map(|pod| &pod.containers).filter(|c| c.running()).map(|c| c.id.clone()).collect()
    }

    /// A container that is about to end by itself.
    pub fn ending(&self) -> Option<&String> {
        self.processes.iter().find(|(_, process)| process.ending).map(|(id, _)| id)
    }

    /// Uids of the pods of which something is left.
    pub fn left(&self) -> Vec<String> {
        self.pods.iter().filter(|(_, pod)| !pod.is_empty()).map(|(uid, _)| uid.clone()).collect()
    }

    /// Something of a pod is alive: a container runs or a sandbox is ready.
    pub fn alive(&self, uid: &str) -> bool {
        !self.running(uid).is_empty() || self.pods.get(uid).is_some_and(|pod| pod.sandboxes.iter().any(|s| s.ready))
    }

    /// The agent that listened is gone.
    pub fn cut_news(&mut self) {
        self.subscriber = None;
    }

    fn uid_of(&self, id: &str) -> Option<String> {
        let has = |pod: &ObservedPod| {
            pod.containers.iter().any(|c| c.id == id) || pod.sandboxes.iter().any(|sandbox| sandbox.id == id)
        };
        self.pods.iter().find(|(_, pod)| has(pod)).map(|(uid, _)| uid.clone())
    }

    fn container(&self, id: &str) -> Option<(&str, &ObservedContainer)> {
        self.pods.iter().find_map(|(uid, pod)| Some((uid.as_str(), pod.containers.iter().find(|c| c.id == id)?)))
    }
}

fn error(message: impl Into<String>) -> RuntimeError {
    RuntimeError { failure: RuntimeFailure::Other, message: message.into() }
}

fn runtime_error<T>(fault: Fault) -> Result<T, RuntimeError> {
    let failure = match fault {
        Fault::Refused => RuntimeFailure::Other,
        Fault::Cut => RuntimeFailure::Unavailable,
        Fault::Deadline => RuntimeFailure::Deadline,
    };
    Err(RuntimeError { failure, message: format!("rpc error: {fault:?}") })
}

impl State {
    /// Tells the agent how the pod is now; news may be late, and with faults they may be lost.
    fn tell(&mut self, uid: &str) {
        let Some(pod) = self.runtime.pods.get(uid).cloned() else { return };
        self.send(RuntimeEvent::Changed(pod));
    }

    fn send(&mut self, event: RuntimeEvent) {
        let (delay, now) = (self.dice.delay(), self.elapsed());
        let lost = self.rate > 0.0 && self.dice.hits(self.rate / 2.0);
        let told = lost && self.dice.hits(0.5);
        let silent = self.runtime.silent;
        let Some(subscriber) = self.runtime.subscriber.as_mut().filter(|_| !silent) else { return };
        let event = match (lost, told) {
            (false, _) => event,
            (true, true) => RuntimeEvent::Lost,
            (true, false) => return,
        };
        subscriber.last = subscriber.last.max(now + delay);
        let (wait, sender) = (subscriber.last - now, subscriber.sender.clone());
        self.after(wait, move |_| drop(sender.send(event)));
    }

    /// A process ends.
    fn end(&mut self, id: &str, code: i32) {
        let now = self.now();
        let Some(uid) = self.runtime.container(id).filter(|(_, c)| c.running()).map(|(uid, _)| uid.to_owned()) else {
            return;
        };
        let pod = self.runtime.pods.get_mut(&uid).unwrap();
        let container = pod.containers.iter_mut().find(|c| c.id == id).unwrap();
        container.fact = ContainerFact::Exited;
        container.exit_code = code;
        container.finished_at = Some(now);
        if let Some(process) = self.runtime.processes.remove(id) {
            process.waiting.into_iter().for_each(|waiting| waiting.send(()).unwrap_or_default());
        }
        self.note(&format!("ends {id} with {code}"));
        self.laws.container_ended(id, code, now);
        self.tell(&uid);
    }

    /// The sandbox dies, with all in it.
    pub fn kill_sandbox(&mut self, uid: &str) {
        let Some(pod) = self.runtime.pods.get_mut(uid) else { return };
        pod.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false);
        self.laws.sandbox_died(uid);
        for id in self.runtime.running(uid) {
            self.end(&id, 137);
        }
        self.tell(uid);
    }

    /// A running container ends by itself.
    pub fn crash_container(&mut self, id: &str, code: i32) {
        self.end(id, code);
    }

    fn make_sandbox(&mut self, spec: &SandboxSpec) -> Result<String, RuntimeError> {
        let now = self.now();
        self.makes(&spec.uid);
        self.runtime.serial += 1;
        let id = format!("{}-s{}-{}", spec.uid, spec.attempt, self.runtime.serial);
        let pod = self.runtime.pods.entry(spec.uid.clone()).or_default();
        if pod.sandboxes.iter().any(|sandbox| sandbox.attempt == spec.attempt) {
            return Err(error(format!("the name of attempt {} is reserved", spec.attempt)));
        }
        pod.uid.clone_from(&spec.uid);
        pod.name.clone_from(&spec.name);
        pod.namespace.clone_from(&spec.namespace);
        pod.sandboxes.push(ObservedSandbox {
            id: id.clone(),
            attempt: spec.attempt,
            ready: true,
            created_at: now,
            ips: vec![format!("10.0.{}.{}", self.runtime.serial / 250, self.runtime.serial % 250 + 1)],
            host_network: false,
        });
        pod.sort();
        self.tell(&spec.uid);
        Ok(id)
    }

    fn stop_all(&mut self, sandbox_id: &str) {
        let Some(uid) = self.runtime.uid_of(sandbox_id) else { return };
        let pod = self.runtime.pods.get_mut(&uid).unwrap();
        pod.sandboxes.iter_mut().filter(|s| s.id == sandbox_id).for_each(|sandbox| sandbox.ready = false);
        let inside = pod.containers.iter().filter(|c| c.sandbox_id == sandbox_id && c.running());
        for id in inside.map(|c| c.id.clone()).collect::<Vec<_>>() {
            let now = self.now();
            self.laws.container_killed(&id, now, "the stop of its sandbox");
            self.end(&id, 137);
        }
        self.tell(&uid);
    }

    fn remove_all(&mut self, sandbox_id: &str) {
        self.stop_all(sandbox_id);
        let Some(uid) = self.runtime.uid_of(sandbox_id) else { return };
        let pod = self.runtime.pods.get_mut(&uid).unwrap();
        pod.remove_sandbox(sandbox_id);
        self.send(RuntimeEvent::Gone(sandbox_id.to_owned()));
    }

    fn make_container(
        &mut self,
        sandbox_id: &str,
        spec: &ContainerSpec,
        sandbox: &SandboxSpec,
    ) -> Result<String, RuntimeError> {
        let now = self.now();
        self.makes(&sandbox.uid);
        self.runtime.serial += 1;
        let id = format!("{}-{}-{}-{}", sandbox.uid, spec.name, spec.attempt, self.runtime.serial);
        let pod = self.runtime.pods.entry(sandbox.uid.clone()).or_default();
        if !pod.sandboxes.iter().any(|known| known.id == sandbox_id && known.ready) {
            return Err(error(format!("sandbox {sandbox_id} is not ready")));
        }
        if pod.containers.iter().any(|c| c.name == spec.name && c.attempt == spec.attempt) {
            return Err(error(format!("the name of attempt {} of {} is reserved", spec.attempt, spec.name)));
        }
        pod.containers.push(ObservedContainer::made(&id, sandbox_id, spec, sandbox, now));
        pod.sort();
        self.tell(&sandbox.uid);
        Ok(id)
    }

    fn start(&mut self, id: &str) -> Result<(), RuntimeError> {
        let now = self.now();
        let Some(uid) = self.runtime.uid_of(id) else { return Err(error(format!("no container {id}"))) };
        self.makes(&uid);
        let pod = self.runtime.pods.get_mut(&uid).unwrap();
        let container = pod.containers.iter().find(|c| c.id == id).unwrap();
        let ready = pod.sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox_id && sandbox.ready);
        if !ready || container.fact != ContainerFact::Created {
            return Err(error(format!("container {id} is {:?}, its sandbox ready: {ready}", container.fact)));
        }
        let container = pod.containers.iter_mut().find(|c| c.id == id).unwrap();
        container.fact = ContainerFact::Running;
        container.started_at = Some(now);
        let container = container.clone();
        let pod = pod.clone();
        let era = self.era;
        self.laws.container_started(&pod, &container, era, now);
        self.behave(&uid, &container);
        self.tell(&uid);
        Ok(())
    }

    /// Decides when and how a container that was started ends by itself, and how it takes a signal.
    fn behave(&mut self, uid: &str, container: &ObservedContainer) {
        let obeys = match self.dice.between(0, 9) {
            0..6 => Some(self.dice.between(0, 1_500)),
            6..9 => Some(self.dice.between(0, 25_000)),
            _ => None,
        };
        self.runtime.processes.insert(container.id.clone(), Process { obeys, late: self.late, ..Process::default() });
        let calm = !self.wild;
        let Some(pod) = self.laws.pod(uid) else { return };
        let spec = find_container(&pod, &container.name);
        let own = spec.as_ref().and_then(|spec| spec.container.restart_policy.clone());
        let policy = own.unwrap_or_else(|| restart_policy(&pod).to_owned());
        let kind = spec.map_or(ContainerKind::App, |spec| spec.kind);
        let code = if calm || self.dice.hits(0.5) { 0 } else { self.dice.pick(&[0, 1, 3, 42, 88, 137]) };
        let ends = match kind {
            ContainerKind::Init => Some(self.dice.between(0, 4_000)),
            ContainerKind::App if policy != "Always" && self.dice.hits(0.7) => Some(self.dice.between(0, 20_000)),
            _ if !calm && self.dice.hits(0.4) => Some(self.dice.between(0, 30_000)),
            _ => None,
        };
        if let Some(delay) = ends {
            let id = container.id.clone();
            self.runtime.processes.entry(id.clone()).or_default().ending = true;
            self.after(delay, move |state| state.end(&id, code));
        }
    }

    /// Sends the stop signal, and the kill when the grace is over. Returns what tells of the end.
    fn signal(&mut self, id: &str, grace_seconds: i64) -> Option<oneshot::Receiver<()>> {
        let now = self.now();
        self.runtime.container(id).filter(|(_, c)| c.running())?;
        self.laws.stop_asked(id, grace_seconds, now);
        let process = self.runtime.processes.get_mut(id)?;
        let (sender, receiver) = oneshot::channel();
        process.waiting.push(sender);
        let obeys = process.obeys.filter(|_| !process.signalled);
        process.signalled = true;
        if let Some(delay) = obeys {
            let (id, code) = (id.to_owned(), self.dice.pick(&[0, 143, 143]));
            self.after(delay, move |state| state.end(&id, code));
        }
        let id = id.to_owned();
        self.after(grace_seconds.max(0) as u64 * 1000, move |state| {
            if state.runtime.container(&id).is_some_and(|(_, c)| c.running()) {
                let now = state.now();
                state.laws.container_killed(&id, now, "the end of its grace");
                state.end(&id, 137);
            }
        });
        Some(receiver)
    }

    fn remove_one(&mut self, id: &str) {
        let Some(uid) = self.runtime.uid_of(id) else { return };
        // The start of a call that was given up can't be foreseen.
        let late = self.runtime.processes.get(id).is_some_and(|process| process.late);
        if !late && self.runtime.container(id).is_some_and(|(_, c)| c.running()) {
            self.laws.broken(format!("{id} is removed while it runs"));
        }
        self.end(id, 137);
        self.runtime.pods.get_mut(&uid).unwrap().remove_container(id);
        self.send(RuntimeEvent::Gone(id.to_owned()));
    }
}

struct News(mpsc::UnboundedReceiver<RuntimeEvent>);

impl RuntimeEvents for News {
    fn next(&mut self) -> PortFuture<'_, RuntimeEvent> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(event) => event,
                None => std::future::pending().await,
            }
        })
    }
}

/// The port to the runtime.
pub struct SimRuntime(pub Arc<Sim>);

type Answer<'a, T> = PortFuture<'a, Result<T, RuntimeError>>;

impl SimRuntime {
    fn call<T: Send + 'static>(
        &self,
        what: String,
        deadline: u64,
        effect: impl FnOnce(&mut State) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Answer<'_, T> {
        let kind = if what.starts_with("exec") { Kind::Probe } else { Kind::Outside };
        Box::pin(self.0.call(kind, what, deadline, runtime_error, effect))
    }
}

impl Runtime for SimRuntime {
    fn name(&self) -> String {
        "sim".into()
    }
    fn status(&self) -> Answer<'_, RuntimeStatus> {
        Box::pin(async { Ok(RuntimeStatus::default()) })
    }
    fn run_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Answer<'a, String> {
        let spec = spec.clone();
        let what = format!("run_sandbox {} {}", spec.uid, spec.attempt);
        self.call(what, 2 * DEADLINE, move |state| state.make_sandbox(&spec))
    }
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        self.call(format!("stop_sandbox {id}"), DEADLINE, move |state| {
            state.stop_all(&id);
            Ok(())
        })
    }
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        self.call(format!("remove_sandbox {id}"), DEADLINE, move |state| {
            state.remove_all(&id);
            Ok(())
        })
    }
    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        spec: &'a ContainerSpec,
        sandbox: &'a SandboxSpec,
    ) -> Answer<'a, String> {
        let (sandbox_id, spec, sandbox) = (sandbox_id.to_owned(), spec.clone(), sandbox.clone());
        let what = format!("create_container {} {} {}", sandbox.uid, spec.name, spec.attempt);
        self.call(what, DEADLINE, move |state| state.make_container(&sandbox_id, &spec, &sandbox))
    }
    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        self.call(format!("start_container {id}"), DEADLINE, move |state| state.start(&id))
    }
    fn stop_container<'a>(&'a self, id: &'a str, grace_seconds: i64) -> Answer<'a, ()> {
        let id = id.to_owned();
        let deadline = DEADLINE + grace_seconds.max(0) as u64 * 1000;
        Box::pin(async move {
            let what = format!("stop_container {id} {grace_seconds}");
            let signalled = self.call(what, deadline, move |state| Ok(state.signal(&id, grace_seconds)));
            let Some(ended) = signalled.await? else { return Ok(()) };
            match tokio::time::timeout(Duration::from_millis(deadline), ended).await {
                Ok(_) => Ok(()),
                Err(_) => runtime_error(Fault::Deadline),
            }
        })
    }
    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        self.call(format!("remove_container {id}"), DEADLINE, move |state| {
            state.remove_one(&id);
            Ok(())
        })
    }
    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput> {
        let (id, command) = (id.to_owned(), command.join(" "));
        let deadline = if timeout.is_zero() { 20_000 } else { timeout.as_millis() as u64 };
        self.call(format!("exec {id} {command}"), deadline, move |state| {
            if !state.runtime.container(&id).is_some_and(|(_, c)| c.running()) {
                return Err(error(format!("container {id} does not run")));
            }
            let fails = state.wild && state.dice.hits(0.15);
            Ok(ExecOutput { exit_code: i32::from(fails), ..ExecOutput::default() })
        })
    }
    fn exec_url<'a>(&'a self, id: &'a str, _command: Vec<String>, _options: StreamOptions) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("http://stream/exec/{id}")) })
    }
    fn attach_url<'a>(&'a self, id: &'a str, _options: StreamOptions) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("http://stream/attach/{id}")) })
    }
    fn port_forward_url<'a>(&'a self, sandbox_id: &'a str, _ports: Vec<i32>) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("http://stream/portforward/{sandbox_id}")) })
    }
    fn image<'a>(&'a self, image: &'a str, _runtime_handler: &'a str) -> Answer<'a, Option<ImageFact>> {
        let image = image.to_owned();
        self.call(format!("image {image}"), DEADLINE, move |state| {
            let there = state.runtime.images.contains(&image);
            Ok(there.then(|| ImageFact { id: image, size: 7, ..ImageFact::default() }))
        })
    }
    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        _auth: Option<&'a RegistryAuth>,
        _sandbox: Option<&'a SandboxSpec>,
    ) -> Answer<'a, String> {
        let image = image.to_owned();
        self.call(format!("pull_image {image}"), 2 * DEADLINE, move |state| {
            state.runtime.images.insert(image.clone());
            Ok(image)
        })
    }
    fn pod<'a>(&'a self, uid: &'a str) -> Answer<'a, ObservedPod> {
        let uid = uid.to_owned();
        self.call(format!("pod {uid}"), DEADLINE, move |state| {
            let known = state.runtime.pods.get(&uid).cloned();
            Ok(known.unwrap_or_else(|| ObservedPod { uid, ..ObservedPod::default() }))
        })
    }
    fn pods(&self) -> Answer<'_, (Timestamp, Vec<ObservedPod>)> {
        let begun = self.0.state().now();
        self.call("pods".into(), DEADLINE, move |state| {
            Ok((begun, state.runtime.pods.values().filter(|pod| !pod.is_empty()).cloned().collect()))
        })
    }
    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ObservedPod>> {
        let id = id.to_owned();
        self.call(format!("container {id}"), DEADLINE, move |state| {
            let Some(uid) = state.runtime.uid_of(&id) else { return Ok(None) };
            let mut pod = state.runtime.pods[&uid].clone();
            pod.sandboxes.clear();
            pod.containers.retain(|container| container.id == id);
            Ok(Some(pod))
        })
    }
    fn events(&self) -> Box<dyn RuntimeEvents> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.0.state();
        if state.runtime.silent {
            let _ = sender.send(RuntimeEvent::Unsupported);
        }
        state.runtime.subscriber = Some(Subscriber { sender, last: 0 });
        Box::new(News(receiver))
    }
    fn reopen_log<'a>(&'a self, _id: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
