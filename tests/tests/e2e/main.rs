//! The whole system on real parts: one list of cases, each run against the embedded API server and a real kube-apiserver.

mod containers;
mod environment;
mod pods;
mod probes;

use orlop_tests::cases;
use orlop_tests::runner::{Entry, run};

/// Every case.
const CASES: &[Entry] = cases! {
    Shared pods: [the_sample_serves_its_page, phases_and_conditions, restart_policies, crash_loops_back_off]
    Shared probes: [readiness_by_exec, readiness_by_http, readiness_by_tcp, liveness_restarts, startup_comes_first]
    Shared containers: [init_and_sidecars, init_fails, hooks, deletion, active_deadline, shared_processes]
    Shared environment: [
        variables, missing_references_are_named, names, host_network, host_port, pods_reach_pods, the_api_from_inside,
    ]
};

fn main() -> std::process::ExitCode {
    run(CASES)
}
