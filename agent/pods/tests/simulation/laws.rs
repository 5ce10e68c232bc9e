//! What must hold at every step, whatever goes wrong: each law is checked where the world is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use orlop_agent_core::containers::{self, ContainerKind, all_containers, find_container, init_containers};
use orlop_agent_core::facts::{ObservedContainer, ObservedPod};

/// One instance of a container that was started.
struct Life {
    uid: String,
    name: String,
    sandbox: String,
    attempt: u32,
    hash: String,
    era: u32,
    ended: Option<(Timestamp, i32)>,
}

/// The restart back-off that the agent must keep to at least.
#[derive(Clone, Copy)]
struct Wait {
    era: u32,
    delay: SignedDuration,
    since: Timestamp,
}

/// What is known of a pod.
#[derive(Default)]
struct Known {
    pod: Arc<Pod>,
    /// When its grace is over, by the shortest that was asked for.
    grace_ends: Option<Timestamp>,
    forced: bool,
    /// The longest grace in seconds that a deletion gave.
    longest_grace: i64,
    /// Its definition was changed, or its sandbox died: the plainer laws don't hold.
    disturbed: bool,
    waits: BTreeMap<String, Wait>,
    phase: String,
}

#[derive(Default)]
pub struct Laws {
    pub broken: Vec<String>,
    pods: BTreeMap<String, Known>,
    /// In the order of their starts.
    lives: Vec<(String, Life)>,
    /// The longest restart back-off.
    pub longest_wait: SignedDuration,
    /// Pods for which something was made or written that the agent could not know of.
    haunted: BTreeSet<String>,
    /// When the grace of a container's first stop is over.
    stops: BTreeMap<String, Timestamp>,
    /// No call goes wrong in this run.
    pub clean: bool,
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

fn terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether a rule of the pod may restart all of its containers.
fn restarts_all(pod: &Pod) -> bool {
    all_containers(pod).any(|container| {
        container.container.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers")
    })
}

fn has_own_policy(pod: &Pod) -> bool {
    containers::app_containers(pod).any(|container| container.container.restart_policy.is_some())
}

impl Laws {
    pub fn broken(&mut self, what: String) {
        self.broken.push(what);
    }

    /// A pod is wanted from now on, or has changed.
    pub fn wanted(&mut self, pod: Pod) {
        let known = self.pods.entry(containers::uid(&pod).to_owned()).or_default();
        known.disturbed |= known.pod.spec.is_some();
        known.pod = Arc::new(pod);
    }

    /// Something was made for a pod after the agent had given up on it.
    pub fn haunt(&mut self, uid: &str) {
        self.haunted.insert(uid.to_owned());
    }

    pub fn is_haunted(&self, uid: &str) -> bool {
        self.haunted.contains(uid)
    }

    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.get(uid).map(|known| known.pod.clone())
    }

    pub fn sandbox_died(&mut self, uid: &str) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.disturbed = true;
        }
    }

    pub fn deletion_asked(&mut self, uid: &str, grace: i64, now: Timestamp) {
        if let Some(known) = self.pods.get_mut(uid) {
            let end = now + seconds(grace);
            known.grace_ends = Some(known.grace_ends.map_or(end, |before| before.min(end)));
            known.forced |= grace == 0;
            known.longest_grace = known.longest_grace.max(grace);
        }
    }

    pub fn container_started(&mut self, pod: &ObservedPod, container: &ObservedContainer, era: u32, now: Timestamp) {
        let (uid, name) = (pod.uid.clone(), container.name.clone());
        let running = pod.instances(&name).filter(|instance| instance.running()).count();
        if running > 1 {
            self.broken(format!("{running} instances of {name} of {uid} run"));
        }
        let highest =
            self.lives.iter().filter(|(_, life)| life.uid == uid && life.name == name).map(|(_, l)| l.attempt);
        // A restart of all removes the instances that tell how many there were.
        let counted = self.pods.get(&uid).is_some_and(|known| !restarts_all(&known.pod));
        if let Some(highest) = highest.max().filter(|_| counted).filter(|highest| *highest >= container.attempt) {
            let attempt = container.attempt;
            self.broken(format!("{name} of {uid} starts as attempt {attempt} after attempt {highest}"));
        }
        self.check_order(&uid, container);
        if let Some(known) = self.pods.get(&uid)
            && terminal(&known.phase)
            && !containers::is_static(&known.pod)
            // A start that the runtime did after its caller had given up; what follows is the end's.
            && !self.is_haunted(&uid)
        {
            let phase = known.phase.clone();
            self.broken(format!("{name} of {uid} starts, but the pod has {phase}"));
        }
        self.check_wait(&uid, container, era, now);
        let life = Life {
            uid,
            name,
            sandbox: container.sandbox_id.clone(),
            attempt: container.attempt,
            hash: container.hash().unwrap_or_default().to_owned(),
            era,
            ended: None,
        };
        self.lives.push((container.id.clone(), life));
    }

    /// Init containers have ended well, and sidecars were started, before what comes after them in the same sandbox.
    fn check_order(&mut self, uid: &str, container: &ObservedContainer) {
        let Some(pod) = self.pod(uid) else { return };
        let kind = find_container(&pod, &container.name).map(|found| found.kind);
        if kind.is_none_or(|kind| kind == ContainerKind::Ephemeral) {
            return;
        }
        let lives: Vec<&Life> =
            self.lives.iter().map(|(_, life)| life).filter(|life| life.sandbox == container.sandbox_id).collect();
        let mut missing = Vec::new();
        for before in init_containers(&pod).take_while(|before| before.name() != container.name) {
            let mut instances = lives.iter().filter(|life| life.name == before.name());
            let through = match before.kind {
                ContainerKind::Sidecar => instances.next().is_some(),
                _ => instances.any(|life| life.ended.is_some_and(|(_, code)| code == 0)),
            };
            if !through {
                missing.push(before.name().to_owned());
            }
        }
        if !missing.is_empty() {
            self.broken(format!("{} of {uid} starts before {missing:?} are through", container.name));
        }
    }

    /// Restarts wait as long as the back-off says, within one life of the agent.
    fn check_wait(&mut self, uid: &str, container: &ObservedContainer, era: u32, now: Timestamp) {
        let (name, hash) = (&container.name, container.hash().unwrap_or_default());
        let before = self.lives.iter().rev().map(|(_, life)| life).find(|life| life.uid == uid && life.name == *name);
        let before = before.filter(|life| life.era == era && life.hash == hash);
        let ended = before.and_then(|life| life.ended).map(|(at, _)| at);
        let longest = self.longest_wait;
        let Some(known) = self.pods.get_mut(uid) else { return };
        let Some(ended) = ended.filter(|_| !restarts_all(&known.pod)) else {
            known.waits.remove(name);
            return;
        };
        let first = seconds(10).min(longest);
        let wait = known.waits.get(name).copied().filter(|wait| wait.era == era);
        let mut delay = first;
        let mut complaint = None;
        if let Some(wait) = wait.filter(|wait| ended.duration_since(wait.since) <= longest * 2) {
            // Close to the end of its life the back-off may have ended for the agent, which sees the start earlier.
            if now < ended + wait.delay && ended.duration_since(wait.since) + seconds(20) < longest * 2 {
                complaint =
                    Some(format!("{name} of {uid} is restarted before its back-off of {:?} is over", wait.delay));
            }
            delay = (wait.delay * 2).min(longest);
        }
        known.waits.insert(name.clone(), Wait { era, delay, since: now });
        self.broken.extend(complaint);
    }

    pub fn container_ended(&mut self, id: &str, code: i32, now: Timestamp) {
        if let Some((_, life)) = self.lives.iter_mut().find(|(known, _)| known == id) {
            life.ended = Some((now, code));
        }
    }

    /// The runtime kills a container that did not end by itself.
    pub fn container_killed(&mut self, id: &str, now: Timestamp, by: &str) {
        let Some((_, life)) = self.lives.iter().find(|(known, _)| known == id) else { return };
        let Some(known) = self.pods.get(&life.uid) else { return };
        let (uid, clean) = (life.uid.clone(), self.clean);
        let Some(end) = known.grace_ends.filter(|_| !known.forced) else { return };
        // A sidecar that was told to end because the pod is done has no more time for it when the pod is deleted then.
        let end = self.stops.get(id).map_or(end, |stop| end.min(*stop));
        let plain = !known.disturbed
            && !terminal(&known.phase)
            && known.pod.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_none())
            && !restarts_all(&known.pod)
            && all_containers(&known.pod).all(|container| {
                let container = &container.container;
                let hooks = container.lifecycle.as_ref().is_some_and(|hooks| hooks.post_start.is_some());
                container.liveness_probe.is_none() && container.startup_probe.is_none() && !hooks
            });
        // A container that the agent could not get to know of may go with its sandbox.
        let by_sandbox = by.contains("sandbox") && !clean;
        if plain && !by_sandbox && now + seconds(1) < end {
            let left = end.duration_since(now);
            self.broken(format!("{id} of {uid} is killed by {by} {left:?} before the pod's grace is over"));
        }
    }

    pub fn stop_asked(&mut self, id: &str, grace_seconds: i64, now: Timestamp) {
        let Some((_, life)) = self.lives.iter().find(|(known, _)| known == id) else { return };
        let Some(known) = self.pods.get(&life.uid) else { return };
        let own = known.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let most = own.max(known.longest_grace).max(2);
        if grace_seconds > most {
            self.broken(format!("{id} is to be stopped within {grace_seconds} s at {now}, but the pod gives {most} s"));
        }
        if grace_seconds >= own {
            self.stops.entry(id.to_owned()).or_insert(now + seconds(grace_seconds));
        }
    }

    /// The agent writes a status.
    pub fn status_written(&mut self, old: &Pod, new: &Pod, now: Timestamp, alive: &[String]) {
        let uid = containers::uid(new).to_owned();
        if containers::is_mirror(new) {
            return;
        }
        let empty = PodStatus::default();
        let (before, after) = (old.status.as_ref().unwrap_or(&empty), new.status.as_ref().unwrap_or(&empty));
        let phase = |status: &PodStatus| status.phase.clone().unwrap_or_default();
        let (was, is) = (phase(before), phase(after));
        let disturbed = self.pods.get(&uid).is_none_or(|known| known.disturbed || restarts_all(&known.pod));
        let back = terminal(&was) && was != is || was == "Running" && is == "Pending" && !disturbed;
        if back {
            self.broken(format!("the phase of {uid} goes from {was} to {is}"));
        }
        if terminal(&is) && !terminal(&was) && !alive.is_empty() && !self.is_haunted(&uid) {
            self.broken(format!("{uid} has {is}, but {alive:?} run"));
        }
        // A dead agent's last write may come after its successor has read the pod.
        let kept = before.start_time.is_none() || before.start_time == after.start_time;
        if !kept && !self.is_haunted(&uid) {
            self.broken(format!("startTime of {uid} goes from {:?} to {:?}", before.start_time, after.start_time));
        }
        for status in statuses(after) {
            self.check_container(new, statuses(before).find(|known| known.name == status.name), status, now);
        }
        if let Some(known) = self.pods.get_mut(&uid) {
            known.phase = is;
        }
    }

    fn check_container(&mut self, pod: &Pod, old: Option<&ContainerStatus>, new: &ContainerStatus, now: Timestamp) {
        let (uid, name) = (containers::uid(pod).to_owned(), new.name.clone());
        let Some(spec) = find_container(pod, &name) else { return };
        if let Some(before) = old.map(|old| old.restart_count).filter(|before| *before > new.restart_count) {
            self.broken(format!("the restart count of {name} of {uid} falls from {before} to {}", new.restart_count));
        }
        let id = new.container_id.as_deref().and_then(|id| id.strip_prefix("sim://"));
        let life = id.and_then(|id| self.lives.iter().find(|(known, _)| known == id)).map(|(_, life)| life);
        let ended = life.and_then(|life| life.ended);
        let is_running = new.state.as_ref().is_some_and(|state| state.running.is_some());
        // How late the agent may know of an end: at once, or with the next list that works.
        let late = if self.clean { seconds(15) } else { seconds(400) };
        let over = life.is_none() || ended.is_some_and(|(at, _)| at + late < now);
        let done = spec.kind == ContainerKind::Init && ended.is_some_and(|(_, code)| code == 0);
        if new.ready && !done && (over || !is_running) {
            self.broken(format!("{name} of {uid} is ready, but does not run ({id:?} ended {ended:?})"));
        }
        if is_running && over {
            self.broken(format!("{name} of {uid} is said to run, but does not ({id:?} ended {ended:?})"));
        }
        self.check_transition(pod, &uid, spec.kind, old, new);
    }

    /// What the API server's validation refuses: a container that has ended for good and is said not to have.
    fn check_transition(
        &mut self,
        pod: &Pod,
        uid: &str,
        kind: ContainerKind,
        old: Option<&ContainerStatus>,
        new: &ContainerStatus,
    ) {
        let policy = containers::restart_policy(pod);
        let end = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.clone());
        let Some(ended) = old.and_then(end) else { return };
        let disturbed = self.pods.get(uid).is_none_or(|known| known.disturbed);
        let may = policy == "Always"
            || ended.exit_code != 0 && policy == "OnFailure"
            || kind == ContainerKind::Sidecar
            || has_own_policy(pod)
            || disturbed;
        if !may && end(new).is_none() {
            self.broken(format!("{} of {uid} has ended for good, but its status says otherwise", new.name));
        }
    }
}
