//! What skep promises, and the tests that show it. The README's table is made of this.

/// A promise of DESIGN 2.
#[derive(Debug)]
pub struct Promise {
    /// Its number.
    pub id: &'static str,
    /// What is promised, in a sentence.
    pub text: &'static str,
    /// Names of test functions that would fail if it were broken; none while it is only a plan.
    pub checks: &'static [&'static str],
}

const fn promise(id: &'static str, text: &'static str, checks: &'static [&'static str]) -> Promise {
    Promise { id, text, checks }
}

/// All of them, in order.
pub const PROMISES: &[Promise] = &[
    promise(
        "P1",
        "A secret's plaintext is never on the disk of any node",
        &["only_in_the_granted_shim", "refused_payloads_are_not_kept"],
    ),
    promise(
        "P2",
        "Plaintext at rest in memory is in the task's supervisor alone",
        &["only_in_the_granted_shim", "nowhere_that_root_can_read"],
    ),
    promise(
        "P3",
        "A node gets a secret only while it runs a granted task",
        &[
            "deliveries_that_are_not_for_it",
            "another_container_sees_only_what_it_was_granted",
            "s054_only_where_a_granted_task_runs",
        ],
    ),
    promise(
        "P4",
        "A secret is gone when its task ends, or when it is revoked",
        &[
            "s055_gone_when_the_container_stops",
            "a_killed_shim_takes_secrets_and_container_along",
            "killed_while_the_daemon_is_away",
            "the_end_and_a_revocation_take_mapped_pages_back",
            "a_shim_killed_between_reading_a_touch_and_answering_it",
            "what_is_revoked_is_read_no_more",
        ],
    ),
    promise(
        "P5",
        "A node that is cut off keeps its tasks and their secrets",
        &["a_cut_off_worker_keeps_its_tasks", "s056_a_cut_off_node_keeps_its_secrets"],
    ),
    promise(
        "P6",
        "What was acknowledged is durable",
        &[
            "acknowledged_is_durable",
            "killed_at_its_changes_to_files_1",
            "compaction_under_load_loses_nothing_and_keeps_the_disk_small",
            "a_full_disk_refuses_writes_and_nothing_else",
        ],
    ),
    promise(
        "P7",
        "What goes between nodes is encrypted, and so are the log and its snapshots on the disk",
        &[
            "another_key_opens_nothing",
            "the_key_exchange_is_post_quantum_or_there_is_none",
            "s037_s048_encrypted_in_transit",
            "s038_s049_encrypted_at_rest_on_every_manager",
        ],
    ),
    promise("P8", "A node needs one UDP port", &["s037_s048_encrypted_in_transit"]),
    promise(
        "P9",
        "Tasks survive crash, restart and upgrade of the daemon",
        &["five_tasks_over_kill_and_restart", "tasks_over_a_clean_restart"],
    ),
    promise(
        "P10",
        "Who opened a secret is recorded beside the task and kept by the managers; edits show",
        &[
            "every_open_is_counted_with_its_executable",
            "reads_are_found_at_any_manager",
            "audits_of_a_node_that_was_cut_off_arrive_later",
            "a_record_that_was_edited_on_its_node_is_found",
        ],
    ),
    promise("P11", "The unmodified docker CLI drives it", &["s051_new_or_running_service"]),
    promise(
        "P12",
        "Bad input gives an error, never a hang or growth without end",
        &[
            "malformed_json",
            "oversized_body",
            "too_many_connections",
            "others_are_served_beside_floods_and_dawdlers",
        ],
    ),
];
