//! Tests over real sockets. Files are named after what they promise, tests after what goes wrong.

#[allow(dead_code, unused_imports, reason = "tests/chaos stands on it too, and uses the rest")]
mod support;

/// The account that tests/chaos draws up is pure, and checked here.
#[path = "../chaos"]
mod chaos {
    #[allow(dead_code, missing_docs, unreachable_pub, reason = "tests/chaos uses the rest")]
    mod ledger;
}

mod smtp_session;

mod smtp_security;

mod smtp_relays;

mod smtp_throttling_relay;

mod smtp_deferring_relay;
mod smtp_following;

mod smtp_probing;

mod broker_every_template;

mod mail_as_it_arrives;

mod broker_original_requests;

mod attachments_by_reference;

mod attachments_kept_elsewhere;

mod broker_poisonous_input;

mod broker_deferred_mail;

mod broker_several_recipients;

mod broker_due_times;

mod broker_caps;

mod broker_caps_over_days;

mod broker_caps_many_daemons;

mod broker_duplicates;

mod broker_incident_behind_a_flood;

mod broker_priorities;

mod broker_unrouted;

mod broker_lost_queue;

mod broker_lost_connection;

mod broker_database_away;

mod broker_incident_without_database;

mod journal_in_batches;

mod broker_lost_lease;

mod broker_large_messages;

mod broker_lost_consumer;

mod broker_poison;

mod broker_relay_away;

mod broker_relay_faults;

mod broker_relay_throttles;

mod broker_relay_defers;

mod broker_two_relays;

mod broker_stopped_daemon;

mod broker_killed_daemon;

mod broker_cut_link;

mod broker_topology;

mod events_told;

mod events_not_lost;

mod events_tail;

mod api_description;

mod admin_api;

mod admin_changes;

mod admin_tokens;

mod pages_sign_in;

mod pages_hostile_words;

mod pages_dead_letters;

mod browser_pages;

mod admin_messages;

mod admin_dead_letters;

mod admin_templates;

mod templates_live;

mod pages_templates;

mod command_line;

mod broker_fixed_version;

mod broker_one_connection;

mod broker_suppressed;

mod broker_refused_address;

mod suppression_list;

mod admin_suppressions;

mod broker_readme_program;

mod broker_replay;

mod broker_replay_cut_off;

mod broker_replay_plan;

mod broker_replay_runs;

mod admin_replays;

mod admin_roles;

mod admin_resend;

mod feedback_matching;

mod webhook_forgeries;

mod webhook_certificates;

mod webhook_receipts;

mod webhook_limits;

mod http_framing;

mod http_headers;

mod http_slow_clients;

mod http_tls;

mod feedback_end_to_end;

mod unsubscribe;

mod browser_mails;

mod browser_unsubscribe;

mod mail_signed;

mod injection_html;

mod injection_sql;

mod input_limits;

mod mail_headers;

mod mail_smtputf8;

mod retention_forgotten;

mod retention_year;

mod retention_rows;

mod retention_daemons;

mod broker_lanes;

mod pages_overview;

mod broker_service_manager;

mod broker_health;

mod broker_producers;

mod broker_definitions;

mod broker_tls;

mod database_tls;

mod least_privilege;

mod secrets;

mod broker_upgrade;

mod dashboard_queries;

mod proto_compatibility;

mod telemetry_traces;

mod telemetry_metrics;

mod telemetry_collector_away;
