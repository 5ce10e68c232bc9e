//! What a probe costs: CPU time of the node, its pods and the control plane with pods that are probed each second, and with
//! the same pods that are not.

use std::time::{Duration, Instant};

use orlop_tests::case::image;
use serde_json::{Value, json};

use crate::account::Account;
use crate::pods::{Pods, ready};

/// Pods that are probed.
const PODS: usize = 20;
/// How long the machine is looked at, and how often: the quietest time counts, as what else they do only adds.
const TIME: Duration = Duration::from_secs(10);
const TIMES: usize = 4;
/// How long pods stand before: what follows their start is not a probe's.
const REST: Duration = Duration::from_secs(5);

/// Kinds of probes.
#[derive(Clone, Copy)]
pub enum Probe {
    /// Runs `true` in the container.
    Exec,
    /// Fetches a page of the container.
    Http,
}

/// CPU time of one probe in milliseconds.
pub fn cost(account: &Account, pods: &Pods<'_>, kind: Probe) -> f64 {
    let probe = match kind {
        Probe::Exec => json!({"exec": {"command": ["true"]}}),
        Probe::Http => json!({"httpGet": {"path": "/", "port": 8080}}),
    };
    let (idle, busy) = (taken(account, pods, None), taken(account, pods, Some(probe)));
    (busy - idle).max(0.0) * 1e3 / (PODS as f64 * TIME.as_secs_f64())
}

/// Seconds of CPU time that are taken for `TIME` while the pods stand.
fn taken(account: &Account, pods: &Pods<'_>, probe: Option<Value>) -> f64 {
    let names: Vec<String> = (0..PODS).map(|number| format!("probed-{number}")).collect();
    for name in &names {
        let script = "mkdir /w && echo page > /w/index.html && exec httpd -f -p 8080 -h /w";
        let mut container = json!({"name": "c", "image": image("busybox"), "command": ["sh", "-c", script]});
        if let Some(probe) = &probe {
            container["readinessProbe"] = probe.clone();
            container["readinessProbe"]["periodSeconds"] = 1.into();
        }
        let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container]});
        let began = pods.make(name, spec);
        pods.until(name, began, ready);
    }
    // A measurement takes its time; nothing is waited for.
    std::thread::sleep(REST);
    let taken = (0..TIMES).map(|_| {
        let (before, began) = (account.seconds(), Instant::now());
        std::thread::sleep(TIME);
        (account.seconds() - before) * TIME.as_secs_f64() / began.elapsed().as_secs_f64()
    });
    let taken = taken.fold(f64::INFINITY, f64::min);
    for name in &names {
        pods.delete(name);
    }
    taken
}
