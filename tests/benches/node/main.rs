//! `orlop node` beside the kubelet on containerd with runc, each on etcd and kube-apiserver: how soon a watcher of the API
//! sees that a pod is ready, has failed, was restarted, is gone; and what probes cost. `cargo xtask bench node` builds
//! what it needs and runs it; with the word `probes` or `pods` the bench itself measures only these.

mod account;
mod pods;
mod probes;
mod report;
mod side;

use account::Account;
use pods::Pods;
use probes::Probe;
use side::Side;

/// Pods of each kind, after one that fills the caches.
const ROUNDS: usize = 20;

/// What was measured of one node. Times in milliseconds.
#[derive(Default)]
pub struct Figures {
    /// Bound until ready, with a token of its service account.
    pub up: Vec<f64>,
    /// The same without a token.
    pub up_plain: Vec<f64>,
    /// Killed until the pod has failed (`Never`).
    pub failed: Vec<f64>,
    /// Killed until it is not ready (`Always`).
    pub not_ready: Vec<f64>,
    /// Killed until it is ready again (`Always`).
    pub again: Vec<f64>,
    /// Deleted until it is gone; it ends on SIGTERM.
    pub gone: Vec<f64>,
    /// CPU time of an exec probe, of the node, its pods and the control plane.
    pub exec_probe: f64,
    /// The same of an HTTP probe.
    pub http_probe: f64,
}

fn main() {
    let mut figures = Vec::new();
    let account = Account::open();
    for start in [Side::orlop, Side::peer] {
        // One after the other: a second control plane would take time from the first.
        let side = start();
        figures.push(measure(&account, &side));
    }
    eprintln!();
    print!("{}", report::table(&figures[0], &figures[1]));
}

/// Whether these are asked for: by name, or because nothing is.
fn wanted(what: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| word == what)
}

fn measure(account: &Account, side: &Side) -> Figures {
    let mut figures = Figures::default();
    let pods = Pods::new(side.api());
    for round in (0..=ROUNDS).filter(|_| wanted("pods")) {
        eprint!("\r{}: round {round} of {ROUNDS}      ", side.name());
        let always = pods.up("always", "Always", true);
        let never = pods.up("never", "Never", false);
        let (not_ready, again) = pods.kill_and_restart("always");
        let failed = pods.kill_and_fail("never");
        let gone = pods.delete("always");
        pods.delete("never");
        if round > 0 {
            figures.up.push(always);
            figures.up_plain.push(never);
            figures.not_ready.push(not_ready);
            figures.again.push(again);
            figures.failed.push(failed);
            figures.gone.push(gone);
        }
    }
    if !wanted("probes") {
        return figures;
    }
    let probe = |kind| {
        eprint!("\r{}: probes      ", side.name());
        probes::cost(account, &pods, kind)
    };
    figures.exec_probe = probe(Probe::Exec);
    figures.http_probe = probe(Probe::Http);
    figures
}
