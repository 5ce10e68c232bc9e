//! What Kubernetes' own tests of a node promise, row by row, as cases of our own: each runs with the embedded API server
//! and with a real kube-apiserver. `docs/conformance.md` lists the rows, their cases and what fails.

mod ends;
mod environment;
mod ephemeral;
mod file_keys;
mod hooks;
mod host_names;
mod init;
mod node;
mod objects;
mod pod_resources;
mod pods;
mod probes;
mod pulls;
mod restart_rules;
mod runtime_classes;
mod security;
mod shape;
mod socket;
mod sysctls;
mod table;
mod user_namespaces;

use environment::{commands, configmaps, downward, expansion, secrets};
use hooks::{app as app_hooks, sidecar as sidecar_hooks};
use objects::pod_templates;
use orlop_tests::cases;
use orlop_tests::cluster::{Cluster, Setup};
use orlop_tests::place::foreign;
use orlop_tests::runner::{Entry, Plan, run_by};
use probes::{app as app_probes, sidecar as sidecar_probes};
use restart_rules::all as restart_all;

/// Cases at the same time: they wait for the node more than they work.
const THREADS: usize = 12;

/// Restarts back off to 12 s at most, so that the second one waits for 10 s and all others for 12 s.
const SETUP: Setup = Setup {
    kubelet: "crashLoopBackOff: {maxContainerRestartPeriod: 12s}\n",
    flags: Some(pulls::credential_flags),
    environment: None,
    gates: "ContainerStopSignals=true",
    then: Some(load_images),
};

/// What the registry doesn't have: etcd answers the gRPC health protocol.
fn load_images(cluster: &Cluster) {
    cluster.load_program("etcd", &foreign("etcd"));
}

/// Every case.
pub const CASES: &[Entry] = cases! {
    Alone table: [every_row_has_a_case]
    // They take longest, so they begin first.
    Shared app_probes: [restarts_are_counted]
    Shared sidecar_probes: [restarts_are_counted]
    Shared pods: [back_off_of_new_image, back_off_is_capped]
    Shared node: [status_is_written_seldom]
    Shared init: [failure_is_tried_again]
    Shared expansion: [written_sub_path]
    Shared restart_rules: [by_rule, container_always, pod_always]

    Shared app_probes: [
        readiness_after_its_delay, failing_readiness, exec_liveness_fails, exec_liveness_succeeds, http_liveness_fails,
        tcp_liveness_succeeds, http_liveness_succeeds, exec_liveness_times_out, exec_readiness_times_out,
        exec_liveness_fails_late, local_redirect, foreign_redirect, startup_fails, startup_delays_liveness,
        liveness_after_startup, ready_after_startup, grace_of_liveness, grace_of_startup, grpc_liveness_succeeds,
        grpc_liveness_fails, readiness_while_ending, no_liveness_while_ending,
    ]
    Shared sidecar_probes: [
        readiness_after_its_delay, failing_readiness, exec_liveness_fails, exec_liveness_succeeds, http_liveness_fails,
        tcp_liveness_succeeds, http_liveness_succeeds, exec_liveness_times_out, exec_readiness_times_out,
        exec_liveness_fails_late, local_redirect, foreign_redirect, startup_fails, startup_delays_liveness,
        liveness_after_startup, ready_after_startup, grace_of_liveness, grace_of_startup, grpc_liveness_succeeds,
        grpc_liveness_fails, readiness_while_ending, no_liveness_while_ending,
    ]
    Shared app_hooks: [
        post_start_exec, pre_stop_exec, post_start_http, post_start_https, pre_stop_http, pre_stop_https,
    ]
    Shared sidecar_hooks: [
        post_start_exec, pre_stop_exec, post_start_http, post_start_https, pre_stop_http, pre_stop_https,
    ]
    Shared hooks: [sleep_before_end, sleep_cut_short, sleep_of_ended_container, sleep_of_zero, stop_signal]
    Shared pods: [
        host_ip, life, update, active_deadline, services_as_variables, exec_by_websocket, log_by_websocket,
        readiness_gates, delete_collection, life_of_object_and_status, patch_status,
    ]
    Shared init: [of_pod_that_ends, of_pod_that_runs, failure_ends_pod]
    Shared ends: [
        restart_policies, message_at_path, message_of_other_user, message_of_log, no_message_of_success,
        message_of_file_first,
    ]
    Shared pulls: [no_registry, registry, private_without_secret, private_with_secret, by_credential_program]
    Shared commands: [of_the_image, other_arguments, other_command, both]
    Shared configmaps: [variable, all_variables, empty_key, update, life, prefixes]
    Shared secrets: [variable, all_variables, empty_key, patch, prefixes]
    Shared downward: [
        name_and_address, host_ip, host_ips, host_network, amounts, amounts_of_the_node, uid, amounts_of_the_pod,
        amounts_of_pod_or_node, huge_pages, huge_pages_of_the_node,
    ]
    Shared expansion: [
        variables, command, arguments, sub_path, sub_path_with_backticks, absolute_sub_path, mended_sub_path, any_names,
    ]
    Shared node: [
        output_is_log, failure_has_reason, failure_can_be_deleted, host_aliases, read_only_root,
        host_aliases_on_host_network, hosts_file, leases, lease_is_renewed, lease_has_owner, other_system,
    ]
    Shared host_names: [
        with_dots, before_hostname, alone, with_subdomain, not_with_full_name, not_on_host_network, not_any_text,
    ]
    Shared ephemeral: [start, update]
    Shared runtime_classes: [
        unknown, unconfigured_handler, configured_handler, without_overhead, with_overhead, deleted, objects,
    ]
    Shared pod_templates: [life, delete_collection, replace]
    Shared sysctls: [safe, invalid, not_allowed, with_slashes]
    Shared security: [
        given_user, given_root, non_root_of_the_pod, root_of_the_pod_is_refused, non_root_of_the_image,
        no_user_is_refused, read_only_root, writable_root, unprivileged, privileged, privileged_beside_other,
        escalation_by_default, no_escalation, escalation, groups_by_default, groups_merged, groups_strict,
    ]
    Shared user_namespaces: [
        own_users, within_the_range, host_users, volumes, fs_group, metrics, restricted_standard,
    ]
    Shared restart_rules: [not_by_rule, container_never]
    Shared restart_all: [by_container, by_sidecar, by_init_container, without_a_loop, by_restarted_container]
    Shared file_keys: [
        variables, of_several_containers, optional_key, post_start, pre_stop, unknown_volume, other_volume, missing,
        optional_file_or_key, of_init_container, init_container_of_other_volume, of_ephemeral_container,
    ]
    Shared pod_resources: [of_the_pod, image_volume]
};

fn main() -> std::process::ExitCode {
    run_by(CASES, &Plan { setup: SETUP, threads: THREADS, known: table::known() })
}
