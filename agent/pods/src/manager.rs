//! The desired set: pods of the API and of the static source, one worker for each, and an end for what nobody wants.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::memory::Verdict;
use orlop_agent_core::metrics::names;
use orlop_agent_core::ports::{NodeView, PodSet, PortError};
use orlop_agent_core::static_pods::mirror_matches;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{PodPorts, PodsConfig};
use crate::log_rotation::rotate_logs;
use crate::mirror::{MirrorKeeper, full_name, plan_mirrors};
use crate::node_view::ViewOfPods;
use crate::resolv_conf::check_resolv_conf;
use crate::shared::{Shared, lock};
use crate::static_source::{StaticNode, StaticSet, follow_folder, join_sources};
use crate::static_url::follow_url;
use crate::worker::{Desired, Worker};
use admission::Admission;

mod admission;
mod orphans;
mod references;

/// Between two looks for left-overs on disk.
const DISK_SCAN: Duration = Duration::from_secs(60);

/// A wish of another part of the agent.
enum Command {
    End {
        uid: String,
        verdict: Verdict,
        grace_seconds: Option<i64>,
    },
    /// Tell which pods there are, once all that came before is done.
    Tell(oneshot::Sender<Vec<Arc<Pod>>>),
}

/// Handle for other parts of the agent (eviction, shutdown).
#[derive(Clone)]
pub struct PodHandle {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

impl PodHandle {
    /// Ends a pod with the node's word on it: phase, reason, message, whether the node needs the room. The grace is
    /// the spec's unless one is given, in seconds.
    pub fn end_pod(&self, uid: &str, verdict: Verdict, grace_seconds: Option<i64>) {
        let _ = self.commands.send(Command::End { uid: uid.to_owned(), verdict, grace_seconds });
    }

    /// Pods that hold resources of the node.
    pub fn active_pods(&self) -> Vec<Arc<Pod>> {
        lock(&self.shared.admitted).values().cloned().collect()
    }

    /// Pods of the sources that have a worker. Every pod that was let in before this was asked is among them.
    pub(crate) async fn pods(&self) -> Vec<Arc<Pod>> {
        let (sender, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Tell(sender));
        // A manager that is ending ends no pods.
        answer.await.unwrap_or_default()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// The pod manager.
pub struct PodManager {
    shared: Arc<Shared>,
    api: Option<watch::Receiver<Arc<PodSet>>>,
    ended: mpsc::UnboundedReceiver<String>,
    handle: PodHandle,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl PodManager {
    /// A manager of the pods of one node. `api` is the API's set of pods; none in standalone mode.
    pub fn new(config: PodsConfig, ports: PodPorts, api: Option<watch::Receiver<Arc<PodSet>>>) -> PodManager {
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let (command_sender, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(config, ports, ended_sender));
        PodManager {
            api,
            ended,
            handle: PodHandle { shared: shared.clone(), commands: command_sender },
            commands,
            shared,
        }
    }

    /// What the kubelet port sees of the pods.
    pub fn node_view(&self) -> Arc<dyn NodeView> {
        Arc::new(ViewOfPods::new(self.shared.clone()))
    }

    /// Handle for other parts of the agent.
    pub fn handle(&self) -> PodHandle {
        self.handle.clone()
    }

    /// Works until cancelled. Containers run on.
    pub async fn run(mut self, cancel: CancellationToken) {
        let (shared, token) = (self.shared.clone(), cancel.clone());
        let mut side: JoinSet<()> = JoinSet::new();
        let pace = self.shared.config.pace.clone();
        side.spawn(pace.task("observer", async move {
            let (runtime, metrics) = (&*shared.ports.runtime, &*shared.ports.metrics);
            shared.observed.follow(runtime, metrics, shared.config.relist, &token).await
        }));
        let shared = self.shared.clone();
        side.spawn(pace.task("resolv.conf", async move { check_resolv_conf(&shared).await }));
        if let Some(rotation) = self.shared.config.log_rotation.clone() {
            let (shared, token) = (self.shared.clone(), cancel.clone());
            side.spawn(pace.task("logs", async move { rotate_logs(&shared, &rotation, &token).await }));
        }
        let (_keep, idle) = watch::channel(Arc::new(StaticSet { scanned: true, pods: BTreeMap::new() }));
        let mut statics = self.follow_statics(&cancel).unwrap_or(idle);
        let (_keep_api, no_api) = watch::channel(Arc::new(PodSet { synced: true, pods: BTreeMap::new() }));
        let mut api = self.api.take().unwrap_or(no_api);
        let mut changes = self.follow_changes(&mut side, &cancel);
        // Before the runtime was listed once, a pod that runs would be taken for one that has not been started.
        let mut listed = self.shared.observed.listed();
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = listed.wait_for(Option::is_some) => {}
        }
        // An image whose pull was cut short must not pass for one that was there before.
        self.shared.pull_records.clone().recover(&*self.shared.ports.runtime).await;
        let (shared, token) = (self.shared.clone(), cancel.clone());
        side.spawn(self.shared.config.pace.task("image records", async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = shared.pull_records.clone().prune(&*shared.ports.runtime) => {}
            }
        }));
        let (mirror_sender, mut mirror_done) = mpsc::unbounded_channel();
        let keeper = self
            .shared
            .ports
            .mirrors
            .clone()
            .map(|port| MirrorKeeper::new(port, mirror_sender, self.shared.config.pace.clone()));
        let mut roster = Roster::new(self.shared.clone(), keeper, cancel.clone());
        loop {
            let sets = (api.borrow_and_update().clone(), statics.borrow_and_update().clone());
            let wake = roster.reconcile(&sets.0, &sets.1);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                changed = api.changed() => if changed.is_err() { break },
                changed = statics.changed() => if changed.is_err() { break },
                Some(uid) = self.ended.recv() => roster.worker_ended(&uid),
                Some((kind, namespace, name)) = changes.recv() => roster.object_changed(&kind, &namespace, &name),
                Some(command) = self.commands.recv() => roster.obey(command),
                Some((name, result)) = mirror_done.recv() => roster.mirror_ended(name, result),
                () = self.shared.observed.appeared.notified() => {}
                () = self.shared.room.notified() => {}
                Some(_) = roster.workers.join_next() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        cancel.cancel();
        while roster.workers.join_next().await.is_some() {}
        while side.join_next().await.is_some() {}
    }

    /// The sources of static pods; none where there are none.
    fn follow_statics(&self, cancel: &CancellationToken) -> Option<watch::Receiver<Arc<StaticSet>>> {
        let (config, pace) = (&self.shared.config, &self.shared.config.pace);
        let node = || StaticNode { name: config.node_name.clone(), events: self.shared.ports.events.clone() };
        let folder = config.static_pod_path.clone();
        let folder =
            folder.map(|folder| follow_folder(folder, node(), config.file_check, pace.clone(), cancel.clone()));
        let url = config.static_url.clone();
        let url = url.map(|url| follow_url(url, node(), pace.clone(), cancel.clone()));
        match (folder, url) {
            (Some(folder), Some(url)) => Some(join_sources(folder, url, pace)),
            (folder, url) => folder.or(url),
        }
    }

    fn follow_changes(
        &self,
        side: &mut JoinSet<()>,
        cancel: &CancellationToken,
    ) -> mpsc::Receiver<(String, String, String)> {
        let (sender, receiver) = mpsc::channel(256);
        let mut stream = self.shared.ports.objects.changes();
        let token = cancel.clone();
        side.spawn(self.shared.config.pace.task("object changes", async move {
            loop {
                tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    change = stream.next() => if sender.send(change).await.is_err() { return },
                }
            }
        }));
        receiver
    }
}

struct Member {
    desired: watch::Sender<Desired>,
    name: (String, String),
    /// It was taken away, and is wanted again before it has ended.
    returned: bool,
}

/// Whether a static pod is wanted again that was taken away: the same file has the same uid. It begins anew once it has
/// ended. A pod of the API never comes back with its uid.
fn returns(pod: &Pod, desired: &Desired) -> bool {
    desired.gone && !desired.orphan && containers::is_static(pod)
}

/// The workers and what they are to make true.
struct Roster {
    shared: Arc<Shared>,
    members: HashMap<String, Member>,
    workers: JoinSet<()>,
    /// Pods whose worker is done, but which the API still has.
    done: HashSet<String>,
    mirrors: Option<MirrorKeeper>,
    next_scan: Option<Instant>,
    /// Pods that wait until others, which were told to end for them, have ended; all by uid.
    preempting: HashMap<String, Vec<String>>,
    /// When pods were first seen that have no worker yet, by uid.
    seen: HashMap<String, Instant>,
    cancel: CancellationToken,
}

impl Roster {
    fn new(shared: Arc<Shared>, mirrors: Option<MirrorKeeper>, cancel: CancellationToken) -> Roster {
        Roster {
            shared,
            members: HashMap::new(),
            workers: JoinSet::new(),
            done: HashSet::new(),
            mirrors,
            next_scan: None,
            preempting: HashMap::new(),
            seen: HashMap::new(),
            cancel,
        }
    }

    /// Brings workers, mirrors and left-overs in line with the sources. Returns when to come again.
    fn reconcile(&mut self, api: &PodSet, statics: &StaticSet) -> Instant {
        let mut wake = Instant::now() + DISK_SCAN;
        let mut wanted: BTreeMap<&str, &Arc<Pod>> = BTreeMap::new();
        let mut mirrors: BTreeMap<(String, String), Arc<Pod>> = BTreeMap::new();
        for (uid, pod) in &api.pods {
            if containers::is_mirror(pod) {
                mirrors.insert(full_name(pod), pod.clone());
            } else {
                wanted.insert(uid, pod);
            }
        }
        wanted.extend(statics.pods.iter().map(|(uid, pod)| (uid.as_str(), pod)));
        self.done.retain(|uid| wanted.contains_key(uid.as_str()));
        self.preempting.retain(|uid, _| wanted.contains_key(uid.as_str()));
        self.seen.retain(|uid, _| wanted.contains_key(uid.as_str()));
        self.update(&wanted, &mirrors, api.synced && statics.scanned);
        self.admit_new(&wanted, &mirrors);
        if api.synced
            && statics.scanned
            && let Some(keeper) = &mut self.mirrors
            && let Some(again) = keeper.begin(plan_mirrors(&statics.pods, &mirrors))
        {
            wake = wake.min(again);
        }
        if api.synced && statics.scanned {
            wake = wake.min(self.find_orphans(&wanted));
        }
        wake
    }

    /// Tells the workers there are what changed. Nothing counts as gone before all sources have spoken.
    fn update(
        &mut self,
        wanted: &BTreeMap<&str, &Arc<Pod>>,
        mirrors: &BTreeMap<(String, String), Arc<Pod>>,
        ready: bool,
    ) {
        for (uid, member) in &mut self.members {
            // The mirror may already be that of the pod's next version.
            let mirror =
                mirrors.get(&member.name).filter(|mirror| mirror_matches(mirror, &member.desired.borrow().pod));
            let mirror_uid = mirror.and_then(|mirror| mirror.metadata.uid.clone());
            let pod = wanted.get(uid.as_str()).copied();
            if !member.returned && pod.is_some_and(|pod| returns(pod, &member.desired.borrow())) {
                member.returned = true;
                self.shared.ports.metrics.count(&names::RESTARTED_PODS, &["true"]);
            }
            member.desired.send_if_modified(|desired| {
                let gone = desired.gone || (pod.is_none() && ready);
                let mirror_uid = if containers::is_static(&desired.pod) { mirror_uid } else { None };
                let changed = gone != desired.gone
                    || desired.mirror_uid != mirror_uid
                    || pod.is_some_and(|pod| !Arc::ptr_eq(pod, &desired.pod));
                desired.gone = gone;
                desired.mirror_uid = mirror_uid;
                if let Some(pod) = pod {
                    desired.pod = pod.clone();
                }
                changed
            });
        }
    }

    /// Admits pods that have no worker yet, the oldest first, and gives each one.
    fn admit_new(&mut self, wanted: &BTreeMap<&str, &Arc<Pod>>, mirrors: &BTreeMap<(String, String), Arc<Pod>>) {
        let mut fresh: Vec<&Arc<Pod>> = wanted
            .iter()
            .filter(|(uid, _)| !self.members.contains_key(**uid) && !self.done.contains(**uid))
            .map(|(_, pod)| *pod)
            .collect();
        fresh.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let now = Instant::now();
        for pod in fresh {
            let seen = *self.seen.entry(containers::uid(pod).to_owned()).or_insert(now);
            let name = full_name(pod);
            let is_static = containers::is_static(pod);
            // A static pod that changed has a new uid; the old one must have ended in full before.
            if is_static && self.members.values().any(|member| member.name == name) {
                continue;
            }
            let mirror = mirrors.get(&name).filter(|mirror| is_static && mirror_matches(mirror, pod));
            let mut pod = (*pod).clone();
            if let Some(status) = mirror.and_then(|mirror| mirror.status.clone()) {
                let mut with_status = (*pod).clone();
                with_status.status = Some(status);
                pod = Arc::new(with_status);
            }
            let Admission::Decided(verdict) = self.admission(&pod) else { continue };
            let mirror_uid = mirror.and_then(|mirror| mirror.metadata.uid.clone());
            let verdict_grace_seconds = self.shared.config.shut_down_pods.get(containers::uid(&pod)).copied();
            self.seen.remove(containers::uid(&pod));
            let desired =
                Desired { pod, mirror_uid, gone: false, orphan: false, verdict, verdict_grace_seconds, refresh: 0 };
            self.hire(desired, seen);
        }
    }

    /// Gives a pod a worker; `seen` is when the pod was first seen.
    fn hire(&mut self, desired: Desired, seen: Instant) {
        let uid = containers::uid(&desired.pod).to_owned();
        let name = full_name(&desired.pod);
        lock(&self.shared.holding).insert(uid.clone());
        let (sender, receiver) = watch::channel(desired);
        let worker = Worker::new(self.shared.clone(), receiver, seen);
        let work = self.shared.config.pace.task("worker", worker.run(self.cancel.clone()));
        self.workers.spawn(work);
        self.members.insert(uid, Member { desired: sender, name, returned: false });
    }

    fn worker_ended(&mut self, uid: &str) {
        let returned = self.members.remove(uid).is_some_and(|member| member.returned);
        if !returned {
            self.done.insert(uid.to_owned());
        }
    }

    fn object_changed(&mut self, kind: &str, namespace: &str, name: &str) {
        for member in self.members.values().filter(|member| member.name.0 == namespace) {
            if references::refers(&member.desired.borrow().pod, kind, name) {
                member.desired.send_modify(|desired| desired.refresh += 1);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::End { uid, verdict, grace_seconds } => self.end(&uid, verdict, grace_seconds),
            Command::Tell(answer) => {
                let all = self.members.values().map(|member| member.desired.borrow());
                let _ = answer.send(all.filter(|desired| !desired.orphan).map(|desired| desired.pod.clone()).collect());
            }
        }
    }

    fn end(&mut self, uid: &str, verdict: Verdict, grace_seconds: Option<i64>) {
        if let Some(member) = self.members.get(uid) {
            member.desired.send_modify(|desired| {
                desired.verdict.get_or_insert(verdict);
                desired.verdict_grace_seconds = grace_seconds;
            });
        }
    }

    fn mirror_ended(&mut self, name: (String, String), result: Result<(), PortError>) {
        if let Some(keeper) = &mut self.mirrors {
            keeper.ended(name, result);
        }
    }
}
