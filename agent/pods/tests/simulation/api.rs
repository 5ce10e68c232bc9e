//! The API server as far as the agent needs one for pods: list, watch, status patches, deletion, creation of mirrors.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::client::Body;
use orlop_agent_core::containers;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::sim::{Fault, Kind, Sim, State};

type Name = (String, String);
type ResponseBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Longer than any client waits (30 s), in milliseconds.
const DEADLINE: u64 = 40_000;

struct Watch {
    sender: mpsc::UnboundedSender<Bytes>,
    /// How much of the log was handed out, or is on its way.
    position: usize,
    last: u64,
}

#[derive(Default)]
pub struct ApiState {
    objects: BTreeMap<Name, Pod>,
    /// All changes: version, kind, object.
    log: Vec<(u64, &'static str, Pod)>,
    version: u64,
    watches: BTreeMap<u64, Watch>,
    serial: u64,
}

enum Answer {
    Json(StatusCode, Value),
    Stream(mpsc::UnboundedReceiver<Bytes>),
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Answer {
    let value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16()});
    Answer::Json(code, value)
}

fn fault(fault: Fault) -> Answer {
    match fault {
        Fault::Refused => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the store is away"),
        Fault::Cut => refusal(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "cut off"),
        Fault::Deadline => refusal(StatusCode::GATEWAY_TIMEOUT, "Timeout", "too late"),
    }
}

fn ok(value: &impl serde::Serialize) -> Answer {
    Answer::Json(StatusCode::OK, serde_json::to_value(value).unwrap())
}

fn name_of(pod: &Pod) -> Name {
    (containers::namespace(pod).to_owned(), containers::name(pod).to_owned())
}

impl ApiState {
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.objects.get(&("ns".to_owned(), name.to_owned()))
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.objects.values().cloned().collect()
    }

    /// The agent that watched is gone.
    pub fn cut_watches(&mut self) {
        self.watches.clear();
    }
}

impl State {
    fn put(&mut self, mut pod: Pod, kind: &'static str) -> Pod {
        self.api.version += 1;
        pod.metadata.resource_version = Some(self.api.version.to_string());
        let name = name_of(&pod);
        if kind == "DELETED" {
            self.api.objects.remove(&name);
        } else {
            self.api.objects.insert(name, pod.clone());
        }
        self.api.log.push((self.api.version, kind, pod.clone()));
        for number in self.api.watches.keys().copied().collect::<Vec<_>>() {
            self.pump(number);
        }
        pod
    }

    /// Hands a watcher what it does not have yet, after a while and in order.
    fn pump(&mut self, number: u64) {
        let (delay, now, upto) = (self.dice.delay(), self.elapsed(), self.api.log.len());
        let Some(watch) = self.api.watches.get_mut(&number) else { return };
        watch.last = watch.last.max(now + delay);
        let wait = watch.last - now;
        self.after(wait, move |state| {
            let Some(watch) = state.api.watches.get_mut(&number) else { return };
            for (_, kind, pod) in state.api.log.get(watch.position..upto).unwrap_or_default() {
                let line = format!("{}\n", json!({"type": kind, "object": pod}));
                let _ = watch.sender.send(Bytes::from(line));
            }
            watch.position = watch.position.max(upto);
        });
    }

    /// Somebody creates a pod.
    pub fn create_pod(&mut self, mut pod: Pod) -> Pod {
        let now = self.now();
        if pod.metadata.uid.is_none() {
            self.api.serial += 1;
            pod.metadata.uid = Some(format!("m{}", self.api.serial));
        }
        pod.metadata.creation_timestamp = Some(Time(now));
        pod.metadata.generation = Some(1);
        self.note(&format!("created {} {}", containers::name(&pod), containers::uid(&pod)));
        if !containers::is_mirror(&pod) {
            self.laws.wanted(pod.clone());
        }
        self.put(pod, "ADDED")
    }

    /// Somebody changes a pod's spec or metadata.
    pub fn change_pod(&mut self, name: &str, what: &str, change: impl FnOnce(&mut Pod)) {
        let Some(mut pod) = self.api.pod(name).cloned() else { return };
        change(&mut pod);
        pod.metadata.generation = pod.metadata.generation.map(|generation| generation + 1);
        self.note(&format!("changed {name}: {what}"));
        self.laws.wanted(pod.clone());
        self.put(pod, "MODIFIED");
    }

    /// Somebody deletes a pod; a grace of 0 removes it at once, whether the node knows or not.
    pub fn delete_pod(&mut self, name: &str, grace_seconds: Option<i64>) {
        let now = self.now();
        let Some(mut pod) = self.api.pod(name).cloned() else { return };
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let ended = matches!(phase.as_str(), "Succeeded" | "Failed");
        let mut grace = if ended { 0 } else { grace_seconds.unwrap_or(own) };
        if let Some(before) = pod.metadata.deletion_grace_period_seconds.filter(|_| grace != 0) {
            if grace >= before {
                return;
            }
            grace = grace.max(1);
        }
        self.note(&format!("deletion of {name} {} asked for with {grace} s", containers::uid(&pod)));
        self.laws.deletion_asked(containers::uid(&pod), grace, now);
        if grace == 0 {
            self.put(pod, "DELETED");
            return;
        }
        let at = now + jiff::SignedDuration::from_secs(grace);
        pod.metadata.deletion_timestamp = Some(Time(at));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.put(pod, "MODIFIED");
    }

    fn list(&mut self) -> Answer {
        let items: Vec<&Pod> = self.api.objects.values().collect();
        ok(&json!({"kind": "PodList", "apiVersion": "v1",
            "metadata": {"resourceVersion": self.api.version.to_string()}, "items": items}))
    }

    fn watch(&mut self, version: u64) -> Answer {
        if self.rate > 0.0 && self.dice.hits(self.rate) {
            return refusal(StatusCode::GONE, "Expired", "too old resource version");
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let position = self.api.log.iter().position(|(at, ..)| *at > version).unwrap_or(self.api.log.len());
        self.api.serial += 1;
        let number = self.api.serial;
        self.api.watches.insert(number, Watch { sender, position, last: 0 });
        self.pump(number);
        let cut = if self.rate > 0.0 { self.dice.between(1_000, 60_000) } else { self.dice.between(240_000, 290_000) };
        self.after(cut, move |state| {
            state.api.watches.remove(&number);
        });
        Answer::Stream(receiver)
    }

    fn patch_status(&mut self, name: &str, patch: &Value) -> Answer {
        let now = self.now();
        let Some(old) = self.api.pod(name).cloned() else {
            return refusal(StatusCode::NOT_FOUND, "NotFound", "no such pod");
        };
        if patch["metadata"]["uid"].as_str() != Some(containers::uid(&old)) {
            let (code, reason) = self.dice.pick(&[(409, "Conflict"), (422, "Invalid")]);
            return refusal(StatusCode::from_u16(code).unwrap(), reason, "the uid is another");
        }
        if self.rate > 0.0 && self.dice.hits(self.rate) {
            return refusal(StatusCode::CONFLICT, "Conflict", "the object has been modified");
        }
        let mut status = serde_json::to_value(old.status.clone().unwrap_or_default()).unwrap();
        merge(&mut status, &patch["status"], "");
        let new: Pod = Pod { status: Some(serde_json::from_value(status).unwrap()), ..old.clone() };
        let alive = self.runtime.running(containers::uid(&old));
        if self.late {
            self.laws.haunt(containers::uid(&old));
        } else {
            self.laws.status_written(&old, &new, now, &alive);
        }
        if new == old {
            self.note(&format!("nothing new for {name}"));
            return ok(&old);
        }
        let phase = new.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        self.note(&format!("status of {name} is {phase} {}", brief(&new)));
        ok(&self.put(new, "MODIFIED"))
    }

    fn delete_at_once(&mut self, name: &str, options: &Value) -> Answer {
        let Some(pod) = self.api.pod(name).cloned() else {
            return refusal(StatusCode::NOT_FOUND, "NotFound", "no such pod");
        };
        let uid = containers::uid(&pod).to_owned();
        if options["preconditions"]["uid"].as_str() != Some(&uid) {
            return refusal(StatusCode::CONFLICT, "Conflict", "the uid is another");
        }
        self.note(&format!("the agent deletes {name} {uid}"));
        if !containers::is_mirror(&pod) {
            let left = self.runtime.alive(&uid) || self.disk.volumes.contains(&uid) || self.disk.cgroups.contains(&uid);
            if left && !self.laws.is_haunted(&uid) {
                self.laws.broken(format!("{uid} is deleted from the API while something of it is there"));
            }
            if pod.metadata.deletion_timestamp.is_none() {
                self.laws.broken(format!("the agent deletes {uid}, which nobody asked for"));
            }
        }
        ok(&self.put(pod, "DELETED"))
    }

    fn serve(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> Answer {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let argument = |key: &str| {
            let found = query.split('&').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
            found.map(str::to_owned)
        };
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["api", "v1", "pods"]) if argument("watch").is_some() => {
                self.watch(argument("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0))
            }
            ("GET", ["api", "v1", "pods"]) => self.list(),
            ("GET", ["api", "v1", "namespaces", _, "pods", name]) => match self.api.pod(name) {
                Some(pod) => ok(pod),
                None => refusal(StatusCode::NOT_FOUND, "NotFound", "no such pod"),
            },
            ("PATCH", ["api", "v1", "namespaces", _, "pods", name, "status"]) => self.patch_status(name, body),
            ("DELETE", ["api", "v1", "namespaces", _, "pods", name]) => self.delete_at_once(name, body),
            ("POST", ["api", "v1", "namespaces", _, "pods"]) => {
                let pod: Pod = serde_json::from_value(body.clone()).unwrap();
                if self.api.objects.contains_key(&name_of(&pod)) {
                    return refusal(StatusCode::CONFLICT, "AlreadyExists", "there is one of that name");
                }
                let status = Some(serde_json::from_value(json!({"phase": "Pending"})).unwrap());
                ok(&self.create_pod(Pod { status, ..pod }))
            }
            _ => panic!("the agent asks for {method} {path}?{query}, which the simulation does not have"),
        }
    }
}

/// A strategic merge of a pod's status: objects by key, conditions by type, all other lists as a whole.
fn merge(old: &mut Value, patch: &Value, field: &str) {
    match (old, patch) {
        (Value::Object(old), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    old.remove(key);
                } else {
                    let empty = if value.is_object() { Value::Object(Map::new()) } else { Value::Null };
                    merge(old.entry(key.clone()).or_insert(empty), value, key);
                }
            }
        }
        (old, Value::Array(patch)) if field == "conditions" => {
            let mut list = old.as_array().cloned().unwrap_or_default();
            for part in patch {
                let index = list.iter().position(|known| known["type"] == part["type"]);
                match (index, part["$patch"] == "delete") {
                    (Some(index), true) => drop(list.remove(index)),
                    (Some(index), false) => merge(&mut list[index], part, ""),
                    (None, true) => {}
                    (None, false) => list.push(part.clone()),
                }
            }
            *old = Value::Array(list);
        }
        (old, Value::Array(patch)) => {
            let kept = patch.iter().filter(|part| part.get("$patch").is_none()).cloned();
            *old = Value::Array(kept.collect());
        }
        (old, patch) => *old = patch.clone(),
    }
}

/// The states of a pod's containers in a few letters.
fn brief(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses];
    let texts = lists.into_iter().flatten().flatten().map(|container| {
        let state = container.state.unwrap_or_default();
        let text = match (&state.waiting, &state.running, &state.terminated) {
            (Some(waiting), ..) => waiting.reason.clone().unwrap_or_default(),
            (_, Some(_), _) => "runs".to_owned(),
            (_, _, Some(end)) => format!("ended({})", end.exit_code),
            _ => "?".to_owned(),
        };
        let ready = if container.ready { "+" } else { "" };
        format!("{}{ready}:{text}:{}", container.name, container.restart_count)
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// The client of one life of the agent.
pub fn client(sim: &Arc<Sim>) -> kube::Client {
    let sim = sim.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let sim = sim.clone();
        async move { Ok::<_, tower::BoxError>(handle(&sim, request).await) }
    });
    kube::Client::new(service, "ns")
}

async fn handle(sim: &Arc<Sim>, request: Request<Body>) -> Response<ResponseBody> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let what = format!("{} {path}{}", parts.method, if query.contains("watch") { " watch" } else { "" });
    let kind = if parts.method == Method::GET { Kind::Outside } else { Kind::Write };
    let answer =
        sim.call(kind, what, DEADLINE, fault, move |state| state.serve(&parts.method, &path, &query, &body)).await;
    match answer {
        Answer::Json(code, value) => {
            let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
            Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
        }
        Answer::Stream(receiver) => {
            let frames = UnboundedReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
            Response::builder().body(StreamBody::new(frames).boxed_unsync()).unwrap()
        }
    }
}
