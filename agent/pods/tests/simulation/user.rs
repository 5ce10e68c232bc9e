//! What people do: pods come, change and go at random times, in the API and as files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::static_pods::static_pod;
use serde_json::Value;

use crate::shapes;
use crate::sim::{Sim, State};

/// Plans all that happens from outside within that time.
pub fn plan(sim: &Arc<Sim>, folder: &Path, until: u64) {
    let mut state = sim.state();
    for index in 0..state.dice.between(1, 4) {
        let at = state.dice.between(0, until / 2);
        let serial = index * 10 + 1;
        state.after(at, move |state| live(state, index, serial, until));
    }
    if state.dice.hits(0.35) {
        let at = state.dice.between(0, until / 2);
        let file = folder.join("static").join("s.json");
        state.after(at, move |state| static_life(state, file, 1, until));
    }
    for _ in 0..state.dice.between(0, 3) {
        let at = state.dice.between(1_000, until);
        state.after(at, accident);
    }
}

/// The life of one name in the API: created, changed, deleted, and perhaps created again.
fn live(state: &mut State, index: u64, serial: u64, until: u64) {
    let name = format!("p{index}");
    if state.api.pod(&name).is_some() {
        return;
    }
    let pod = shapes::api_pod(&mut state.dice, serial, &name);
    state.note(&format!("spec of {name}: {}", serde_json::to_string(&pod.spec).unwrap()));
    state.create_pod(pod);
    let now = state.elapsed();
    if state.dice.hits(0.3) {
        let (at, name) = (state.dice.between(0, until), name.clone());
        state.after(at, move |state| change(state, &name));
    }
    if state.dice.hits(0.6) {
        let at = state.dice.between(0, until.saturating_sub(now));
        let name = name.clone();
        state.after(at, move |state| delete(state, &name));
        if state.dice.hits(0.5) {
            let at = at + state.dice.between(0, 40_000);
            state.after(at, move |state| {
                if state.wild {
                    live(state, index, serial + 1, until);
                }
            });
        }
    }
}

fn change(state: &mut State, name: &str) {
    if !state.wild {
        return;
    }
    match state.dice.between(0, 2) {
        0 => state.change_pod(name, "image", |pod| {
            if let Some(spec) = &mut pod.spec {
                spec.containers[0].image = Some("w:1".into());
            }
        }),
        1 => state.change_pod(name, "label", |pod| {
            pod.metadata.labels.get_or_insert_default().insert("app".into(), "b".into());
        }),
        _ => state.change_pod(name, "deadline", |pod| {
            if let Some(spec) = &mut pod.spec {
                spec.active_deadline_seconds = Some(spec.active_deadline_seconds.map_or(20, |known| known.min(20)));
            }
        }),
    }
}

fn delete(state: &mut State, name: &str) {
    if !state.wild {
        return;
    }
    let grace = state.dice.pick(&[None, None, None, Some(1), Some(5), Some(0)]);
    state.delete_pod(name, grace);
    if state.dice.hits(0.3) {
        let (at, name) = (state.dice.between(0, 20_000), name.to_owned());
        state.after(at, move |state| delete(state, &name));
    }
}

/// Things that break by themselves.
fn accident(state: &mut State) {
    if !state.wild {
        return;
    }
    let pods = state.runtime.left();
    if pods.is_empty() {
        return;
    }
    let index = state.dice.between(0, pods.len() as u64 - 1) as usize;
    let uid = &pods[index];
    match state.dice.between(0, 2) {
        0 => {
            state.note(&format!("the sandbox of {uid} dies"));
            state.kill_sandbox(uid);
        }
        1 => {
            for id in state.runtime.running(uid) {
                let code = state.dice.pick(&[1, 42, 88, 137]);
                state.crash_container(&id, code);
            }
        }
        _ => {
            for pod in state.api.pods().into_iter().filter(orlop_agent_core::containers::is_mirror) {
                state.delete_pod(pod.metadata.name.as_deref().unwrap_or_default(), None);
            }
        }
    }
}

/// The life of a static pod's file.
fn static_life(state: &mut State, file: PathBuf, serial: u64, until: u64) {
    if !state.wild {
        return;
    }
    let definition = shapes::static_pod(&mut state.dice, serial, "s");
    state.note(&format!("file {serial}: {}", definition["spec"]));
    write(state, &file, &definition);
    if state.dice.hits(0.5) {
        let at = state.dice.between(0, until);
        let gone = state.dice.hits(0.5);
        state.after(at, move |state| match gone {
            true if state.wild => {
                state.note("the file is removed");
                let _ = std::fs::remove_file(&file);
            }
            _ => static_life(state, file, serial + 1, until),
        });
    }
}

fn write(state: &mut State, file: &Path, definition: &Value) {
    let now = state.now();
    let pod: Pod = static_pod(definition, "file:s", "node", now).unwrap();
    state.laws.wanted(pod);
    std::fs::write(file, definition.to_string()).unwrap();
}

/// Everything is deleted.
pub fn clear(sim: &Arc<Sim>, folder: &Path) {
    let mut state = sim.state();
    state.note("all is deleted");
    let _ = std::fs::remove_file(folder.join("static").join("s.json"));
    for pod in state.api.pods() {
        state.delete_pod(pod.metadata.name.as_deref().unwrap_or_default(), None);
    }
}
