//! A runtime in memory: it obeys at once, keeps what it was asked, and can be told to fail or to hang.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use orlop_agent_core::facts::{ContainerFact, ObservedContainer, ObservedPod, ObservedSandbox};
use orlop_agent_core::images::RegistryAuth;
use orlop_agent_core::ports::{PortFuture, StreamOptions};
use orlop_agent_core::runtime::*;
use tokio::sync::{Notify, broadcast};

#[derive(Default)]
struct State {
    pods: BTreeMap<String, ObservedPod>,
    images: BTreeSet<String>,
    /// Images that only this user may pull.
    private: BTreeMap<String, String>,
    calls: Vec<String>,
    /// Calls that fail, by their first words.
    failing: BTreeMap<String, String>,
    /// Calls that never answer, by their first words.
    hanging: BTreeSet<String>,
    /// Exit code of execs, by their command.
    execs: BTreeMap<String, i32>,
    /// Calls that are done but answered with an error, by their first words.
    deaf: BTreeMap<String, String>,
    /// News are lost.
    silent: bool,
    /// Containers that don't end by themselves when they are signalled.
    stubborn: BTreeSet<String>,
    /// What sandboxes and containers were asked for as, the last ones.
    sandbox: Option<SandboxSpec>,
    container: Option<ContainerSpec>,
    serial: u32,
}

pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    pub changed: Notify,
}

struct Events(broadcast::Receiver<RuntimeEvent>);

impl RuntimeEvents for Events {
    fn next(&mut self) -> PortFuture<'_, RuntimeEvent> {
        Box::pin(async move {
            match self.0.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => RuntimeEvent::Lost,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        })
    }
}

type Answer<'a, T> = PortFuture<'a, Result<T, RuntimeError>>;

impl FakeRuntime {
    pub fn new() -> Arc<FakeRuntime> {
        let runtime =
            FakeRuntime { state: Mutex::default(), events: broadcast::channel(1024).0, changed: Notify::new() };
        runtime.state.lock().unwrap().images.insert("x:1".into());
        Arc::new(runtime)
    }

    pub fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    /// From now on only this user may pull the image.
    pub fn make_private(&self, image: &str, user: &str) {
        self.state.lock().unwrap().private.insert(image.to_owned(), user.to_owned());
    }

    /// The sandbox that was asked for last.
    pub fn last_sandbox(&self) -> SandboxSpec {
        self.state.lock().unwrap().sandbox.clone().unwrap()
    }

    /// The container that was asked for last.
    pub fn last_container(&self) -> ContainerSpec {
        self.state.lock().unwrap().container.clone().unwrap()
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|known| known.starts_with(call)).count()
    }

    pub fn fail(&self, call: &str, message: &str) {
        self.state.lock().unwrap().failing.insert(call.into(), message.into());
    }

    pub fn heal(&self, call: &str) {
        let mut state = self.state.lock().unwrap();
        state.failing.remove(call);
        state.hanging.remove(call);
    }

    pub fn hang(&self, call: &str) {
        self.state.lock().unwrap().hanging.insert(call.into());
    }

    pub fn lose_answer(&self, call: &str, message: &str) {
        self.state.lock().unwrap().deaf.insert(call.into(), message.into());
    }

    /// From now on all news are lost.
    pub fn hide_news(&self) {
        self.state.lock().unwrap().silent = true;
    }

    pub fn set_exec(&self, command: &str, code: i32) {
        self.state.lock().unwrap().execs.insert(command.into(), code);
    }

    pub fn set_stubborn(&self, container: &str) {
        self.state.lock().unwrap().stubborn.insert(container.into());
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().unwrap().pods.values().all(ObservedPod::is_empty)
    }

    pub fn running(&self, uid: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .pods
            .get(uid)
            .into_iter()
            .flat_map(|pod| &pod.containers)
            .filter(|c| c.running())
            .map(|c| c.id.clone())
            .collect()
    }

    /// A container ends by itself.
    pub fn exit(&self, uid: &str, name: &str, code: i32) {
        self.change(uid, |pod| {
            for container in pod.containers.iter_mut().filter(|container| container.name == name && container.running())
            {
                end(container, code);
            }
        });
    }

    /// The sandbox dies with all in it.
    pub fn kill_sandbox(&self, uid: &str) {
        self.change(uid, |pod| {
            pod.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false);
            pod.containers.iter_mut().filter(|container| container.running()).for_each(|container| end(container, 137));
        });
    }

    fn change(&self, uid: &str, change: impl FnOnce(&mut ObservedPod)) {
        let mut state = self.state.lock().unwrap();
        let pod = state.pods.entry(uid.to_owned()).or_default();
        change(pod);
        let (news, silent) = (pod.clone(), state.silent);
        drop(state);
        if !silent {
            let _ = self.events.send(RuntimeEvent::Changed(news));
        }
        self.changed.notify_one();
    }

    fn uid_of(&self, id: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let found = state
            .pods
            .iter()
            .find(|(_, pod)| pod.containers.iter().any(|c| c.id == id) || pod.sandboxes.iter().any(|s| s.id == id));
        found.map(|(uid, _)| uid.clone())
    }

    /// Fails after a call was done, as told.
    fn answer(&self, call: &str) -> Result<(), RuntimeError> {
        let message = self.state.lock().unwrap().deaf.get(call).cloned();
        message.map_or(Ok(()), |message| Err(RuntimeError { failure: RuntimeFailure::Unavailable, message }))
    }

    /// Notes a call, and fails or hangs as told.
    async fn enter(&self, call: String) -> Result<(), RuntimeError> {
        let (hang, fail) = {
            let mut state = self.state.lock().unwrap();
            state.calls.push(call.clone());
            (
                state.hanging.iter().any(|known| call.starts_with(known)),
                state.failing.iter().find(|(known, _)| call.starts_with(*known)).map(|(_, message)| message.clone()),
            )
        };
        self.changed.notify_one();
        if hang {
            std::future::pending::<()>().await;
        }
        match fail {
            Some(message) => Err(RuntimeError { failure: RuntimeFailure::Other, message }),
            None => Ok(()),
        }
    }
}

fn end(container: &mut ObservedContainer, code: i32) {
    container.fact = ContainerFact::Exited;
    container.exit_code = code;
    container.finished_at = Some(Timestamp::now());
}

impl Runtime for FakeRuntime {
    fn name(&self) -> String {
        "fake".into()
    }
    fn status(&self) -> Answer<'_, RuntimeStatus> {
        Box::pin(async { Ok(RuntimeStatus::default()) })
    }
    fn run_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Answer<'a, String> {
        Box::pin(async move {
            self.enter(format!("run_sandbox {}", spec.uid)).await?;
            self.state.lock().unwrap().sandbox = Some(spec.clone());
            let id = format!("{}-s{}", spec.uid, spec.attempt);
            let made = ObservedSandbox {
                id: id.clone(),
                attempt: spec.attempt,
                ready: true,
                created_at: Timestamp::now(),
                ips: vec!["10.0.0.2".into()],
                host_network: false,
            };
            self.change(&spec.uid, |pod| {
                pod.uid.clone_from(&spec.uid);
                pod.name.clone_from(&spec.name);
                pod.namespace.clone_from(&spec.namespace);
                pod.sandboxes.insert(0, made);
            });
            Ok(id)
        })
    }
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.enter(format!("stop_sandbox {id}")).await?;
            if let Some(uid) = self.uid_of(id) {
                self.change(&uid, |pod| {
                    pod.sandboxes
                        .iter_mut()
                        .filter(|sandbox| sandbox.id == id)
                        .for_each(|sandbox| sandbox.ready = false);
                    pod.containers
                        .iter_mut()
                        .filter(|c| c.sandbox_id == id && c.running())
                        .for_each(|container| end(container, 137));
                });
            }
            Ok(())
        })
    }
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.enter(format!("remove_sandbox {id}")).await?;
            if let Some(uid) = self.uid_of(id) {
                self.change(&uid, |pod| pod.remove_sandbox(id));
            }
            Ok(())
        })
    }
    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        spec: &'a ContainerSpec,
        sandbox: &'a SandboxSpec,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            self.enter(format!("create_container {} {}", spec.name, spec.attempt)).await?;
            let serial = {
                let mut state = self.state.lock().unwrap();
                state.container = Some(spec.clone());
                state.serial += 1;
                state.serial
            };
            let id = format!("{}-{}-{}-{serial}", sandbox.uid, spec.name, spec.attempt);
            let made = ObservedContainer::made(&id, sandbox_id, spec, sandbox, Timestamp::now());
            self.change(&sandbox.uid, |pod| pod.containers.insert(0, made));
            Ok(id)
        })
    }
    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.enter(format!("start_container {id}")).await?;
            if let Some(uid) = self.uid_of(id) {
                self.change(&uid, |pod| {
                    for container in pod.containers.iter_mut().filter(|container| container.id == id) {
                        container.fact = ContainerFact::Running;
                        container.started_at = Some(Timestamp::now());
                    }
                });
            }
            self.answer("start_container")
        })
    }
    fn stop_container<'a>(&'a self, id: &'a str, grace_seconds: i64) -> Answer<'a, ()> {
        Box::pin(async move {
            self.enter(format!("stop_container {id} {grace_seconds}")).await?;
            let stubborn = self.state.lock().unwrap().stubborn.iter().any(|name| id.contains(name.as_str()));
            if stubborn {
                tokio::time::sleep(Duration::from_secs(grace_seconds as u64)).await;
            }
            if let Some(uid) = self.uid_of(id) {
                let code = if stubborn { 137 } else { 0 };
                self.change(&uid, |pod| {
                    pod.containers
                        .iter_mut()
                        .filter(|c| c.id == id && c.running())
                        .for_each(|container| end(container, code))
                });
            }
            Ok(())
        })
    }
    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.enter(format!("remove_container {id}")).await?;
            if let Some(uid) = self.uid_of(id) {
                self.change(&uid, |pod| pod.remove_container(id));
            }
            Ok(())
        })
    }
    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput> {
        Box::pin(async move {
            let call = self.enter(format!("exec {}", command.join(" ")));
            if timeout.is_zero() {
                call.await?;
            } else if tokio::time::timeout(timeout, call)
                .await
                .map_err(|_| RuntimeError { failure: RuntimeFailure::Deadline, message: "late".into() })?
                .is_err()
            {
                return Err(RuntimeError { failure: RuntimeFailure::Other, message: format!("exec in {id} failed") });
            }
            let exit_code = self.state.lock().unwrap().execs.get(&command.join(" ")).copied().unwrap_or(0);
            Ok(ExecOutput { exit_code, ..ExecOutput::default() })
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
        Box::pin(async move {
            let there = self.state.lock().unwrap().images.contains(image);
            Ok(there.then(|| ImageFact { id: image.to_owned(), size: 7, ..ImageFact::default() }))
        })
    }
    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        _sandbox: Option<&'a SandboxSpec>,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            self.enter(format!("pull_image {image}")).await?;
            let owner = self.state.lock().unwrap().private.get(image).cloned();
            if owner.is_some_and(|owner| auth.is_none_or(|auth| auth.username != owner)) {
                return Err(RuntimeError { failure: RuntimeFailure::Other, message: "unauthorized".into() });
            }
            self.state.lock().unwrap().images.insert(image.to_owned());
            Ok(image.to_owned())
        })
    }
    fn pod<'a>(&'a self, uid: &'a str) -> Answer<'a, ObservedPod> {
        Box::pin(async move {
            Ok(self
                .state
                .lock()
                .unwrap()
                .pods
                .get(uid)
                .cloned()
                .unwrap_or_else(|| ObservedPod { uid: uid.into(), ..ObservedPod::default() }))
        })
    }
    fn pods(&self) -> Answer<'_, (Timestamp, Vec<ObservedPod>)> {
        Box::pin(async move {
            self.enter("pods".into()).await?;
            Ok((
                Timestamp::now(),
                self.state.lock().unwrap().pods.values().filter(|pod| !pod.is_empty()).cloned().collect(),
            ))
        })
    }
    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ObservedPod>> {
        Box::pin(async move {
            self.enter(format!("container {id}")).await?;
            let Some(uid) = self.uid_of(id) else { return Ok(None) };
            let mut pod = self.state.lock().unwrap().pods[&uid].clone();
            pod.sandboxes.clear();
            pod.containers.retain(|container| container.id == id);
            Ok(Some(pod))
        })
    }
    fn events(&self) -> Box<dyn RuntimeEvents> {
        Box::new(Events(self.events.subscribe()))
    }
    fn reopen_log<'a>(&'a self, _id: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
