//! Pods end to end: one list of cases, run by the embedded API server and by a real kube-apiserver on etcd.

mod backend;
mod kubectl;
mod pods;
mod restart;
mod volumes;

use backend::Node;

/// A case: its name and what it does.
type Case = (&'static str, fn(&Node));

/// Everything that runs on both.
const CASES: &[Case] = &[
    ("kubectl looks at objects", kubectl::looks),
    ("kubectl changes objects", kubectl::changes),
    ("kubectl logs", kubectl::logs),
    ("kubectl exec, attach and cp", kubectl::enters),
    ("kubectl port-forward", kubectl::forwards),
    ("kubectl debug", kubectl::debugs),
    ("kubectl delete", kubectl::deletes),
    ("restarts and their back-off", pods::restarts),
    ("probes", pods::probes),
    ("init containers and sidecars", pods::order),
    ("hooks", pods::hooks),
    ("environment", pods::environment),
    ("names and hosts", pods::names),
    ("ports of the machine", pods::host_port),
    ("the machine's network", pods::host_network),
    ("limits", pods::limits),
    ("security", pods::security),
    ("static pods", pods::static_pod),
    ("a pod reaches the API", pods::reaches_api),
    ("images that can't be had", pods::wrong_images),
    ("wrong manifests", pods::wrong_manifests),
    ("kinds of volumes", volumes::kinds),
    ("contents that change", volumes::changes),
    ("volumes that can't be had", volumes::wrong),
];

/// What needs somebody who provisions claims, which a bare control plane does not have.
const WITH_PROVISIONER: &[Case] = &[("claims", volumes::claims)];

/// Runs cases one after the other, each to its end; the names of those that failed come last.
fn run_all(node: &Node, cases: &[Case]) {
    let wanted = std::env::var("ORLOP_CASE").unwrap_or_default();
    let before = node.world.count();
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|(name, _)| name.contains(&wanted)) {
        let began = std::time::Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(node)));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        eprintln!("case {name}: {word} in {:.1} s", began.elapsed().as_secs_f64());
        if outcome.is_err() {
            failed.push(*name);
            node.remove_pods();
        }
    }
    node.remove_pods();
    assert!(failed.is_empty(), "failed: {failed:?}\n{}", node.logs());
    orlop_tests::world::until("nothing is left behind", || (node.world.count() == before).then_some(()));
}

#[test]
fn embedded() {
    let node = Node::embedded();
    run_all(&node, CASES);
    run_all(&node, WITH_PROVISIONER);
}

#[test]
fn kube_apiserver() {
    let node = Node::real();
    run_all(&node, CASES);
}

#[test]
fn killed_daemons() {
    restart::runs();
}
