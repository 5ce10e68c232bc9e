//! The whole system on real parts: one list of cases, each run against the embedded API server and a real kube-apiserver.

mod application;
mod containers;
mod environment;
mod faults;
mod kubectl;
mod kubelet;
mod logs;
mod manifests;
mod metrics;
mod pods;
mod probes;
mod resources;
mod restart;
mod shutdown;
mod swaps;
mod volumes;
mod workloads;

use orlop_tests::cases;
use orlop_tests::runner::{Entry, run};

/// Every case.
const CASES: &[Entry] = cases! {
    // They wait for minutes and work for seconds, so they begin first.
    Own faults: [a_plugin_that_hangs]
    Alone kubelet: [kubelet_on_our_runtime]
    Controlled workloads: [jobs, deployments, stateful_sets, daemon_sets]
    Shared application: [several_parts]
    Shared pods: [the_sample_serves_its_page, phases_and_conditions, restart_policies, crash_loops_back_off]
    Shared probes: [readiness_by_exec, readiness_by_http, readiness_by_tcp, liveness_restarts, startup_comes_first]
    Shared containers: [init_and_sidecars, init_fails, hooks, deletion, active_deadline, shared_processes]
    Shared environment: [
        variables, missing_references_are_named, names, host_network, host_port, pods_reach_pods, the_api_from_inside,
    ]
    Shared volumes: [empty_dir, host_path, contents_of_the_api]
    Shared resources: [limits, out_of_memory, security_defaults, users, sysctls]
    Shared manifests: [static_pods_have_mirrors]
    Shared metrics: [of_pods_and_the_runtime]
    Shared kubectl: [
        apply, get, describe_and_events, logs, exec, attach, run, cp, port_forward, debug, delete, change,
        explain_wait_and_rights,
    ]
    Shared faults: [images_that_can_not_be_had, commands_that_can_not_run, a_driver_that_is_gone]
    Own faults: [plugins_that_fail, a_second_instance_is_refused, a_damaged_record_costs_one_object, a_full_disk]
    Own restart: [the_node_is_killed]
    Own logs: [rotation]
    Own shutdown: [by_signal]
    Alone shutdown: [by_logind]
    Alone swaps: [agent_on_containerd, plugins_of_others]
};

fn main() -> std::process::ExitCode {
    run(CASES)
}
