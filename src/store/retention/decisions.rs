//! What becomes of every column of every table. A table or column that is not here has not been thought of: a test compares this
//! with the schema.
//!
//! Invariant: what names a person, or may, is in `removed`; what is left (ids, times, counts, states, template keys, keyed hashes)
//! says nothing about whom it was. A table's own rows end as `ends` says.

/// When the rows of a table end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// With the person, after `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS`: nothing is left of it that could be kept.
    WithPerson,
    /// After `EMAIL_AUDIT_RETENTION_DAYS`.
    WithAudit,
    /// Sooner, or when nothing needs it, as the words say.
    When(&'static str),
    /// Never: it does not grow with mail, as the words say.
    Never(&'static str),
}

/// What becomes of one table.
#[derive(Debug)]
pub struct Decision {
    /// Which.
    pub table: &'static str,
    /// Columns that are emptied after `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS`.
    pub removed: &'static [&'static str],
    /// Columns that stay as they are for as long as the row does.
    pub kept: &'static [&'static str],
    /// When the row goes.
    pub ends: Ends,
}

/// All tables.
pub const DECISIONS: &[Decision] = &[
    Decision {
        // Empty again with every reference: the bytes hold the person. See `files`.
        table: "attachment_blobs",
        removed: &[],
        kept: &["sha256", "size_bytes", "data", "location", "created_at", "used_at"],
        ends: Ends::When("a day after it was last needed, once no mail refers to it"),
    },
    Decision {
        table: "attachment_objects_due",
        removed: &[],
        kept: &["location", "due_at"],
        ends: Ends::When("its object is gone"),
    },
    Decision {
        table: "dead_letter_discards",
        removed: &["note"],
        kept: &["dead_letter_id", "discarded_by", "at"],
        ends: Ends::WithAudit,
    },
    Decision {
        // The settlement key is a UUID of ours, or a hash that only says whether the same letter comes again.
        table: "dead_letters",
        removed: &["error", "routing_key", "properties", "headers", "body"],
        kept: &[
            "id",
            "settlement_key",
            "reason",
            "request_id",
            // of what nobody could read: only if they are plain words
            "source",
            "template_key",
            "lane",
            "attempts",
            "first_at",
            "last_at",
            "generation",
            "body_bytes",
            "state",
            "archived_at",
            "replay_generation",
            "replayed_at",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        // How many there were is in email_messages.attachments_count.
        table: "email_attachments",
        removed: &[
            "id",
            "message_id",
            "filename",
            "content_type",
            "content_id",
            "size_bytes",
            "sha256",
            "created_at",
            "ordinal",
        ],
        kept: &[],
        ends: Ends::WithPerson,
    },
    Decision {
        table: "email_crash_marks",
        removed: &[],
        kept: &["id", "key", "created_at"],
        ends: Ends::When("when its message leaves its queue, or nothing under way can be as old"),
    },
    Decision {
        table: "email_crashes",
        removed: &[],
        kept: &["key", "crashes", "updated_at"],
        ends: Ends::When("when its message leaves its queue, or nothing under way can be as old"),
    },
    Decision {
        // The relay's id and our Message-ID stay: feedback that comes late finds its mail by them.
        table: "email_messages",
        removed: &["recipient_email", "recipient_name", "subject", "html_content", "text_content", "error_message"],
        kept: &[
            "id",
            "request_id",
            "recipient_hash",
            "ordinal",
            "template_key",
            "template_version",
            "attachments_count",
            "status",
            "message_id",
            "attempts",
            "deferrals",
            "due_at",
            "postponed_until",
            "held",
            "settlement",
            "token",
            "worker_id",
            "reason",
            "sent_at",
            "delivered_at",
            "bounce_type",
            "bounce_subtype",
            "source_endpoint",
            "created_at",
            "updated_at",
            "bounced_at",
            "complained_at",
            "complaint_type",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        // The payload's hash, over everything that a request says, tells a repetition from a conflict to the end.
        table: "email_requests",
        removed: &["reply_to", "variables", "metadata"],
        kept: &[
            "id",
            "payload_hash",
            "source",
            "template_key",
            "template_version",
            "priority",
            "lane",
            "locale",
            "published_at",
            "not_before",
            "expires_at",
            "generation",
            "copy_no",
            "retransmission_of",
            "created_at",
            "anonymised_at",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "email_template_activations",
        removed: &[],
        kept: &["id", "template_key", "version", "back_to", "activated_by", "at"],
        ends: Ends::Never("as many as people make"),
    },
    Decision {
        table: "email_template_versions",
        removed: &[],
        kept: &["id", "template_key", "version", "source", "checksum", "created_by", "created_at"],
        ends: Ends::Never("as many as people make; what was sent is told by them"),
    },
    Decision {
        table: "email_templates",
        removed: &[],
        kept: &[
            "id",
            "key",
            "subject",
            "html_content",
            "text_content",
            "required_variables",
            "attachments_allowed",
            "category",
            "version",
            "is_active",
            "created_by",
            "created_at",
            "updated_by",
            "updated_at",
        ],
        ends: Ends::Never("one for each template"),
    },
    Decision {
        // Words of relays and of people; what they come to is in kind, phase and reply_code.
        table: "email_timeline",
        removed: &["reply_text", "error"],
        kept: &[
            "id",
            "message_id",
            "at",
            "kind",
            "attempt",
            "latency_ms",
            "relay",
            "phase",
            "reply_code",
            "relay_message_id",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "email_workers",
        removed: &[],
        kept: &["id", "started_at", "lease_until", "figures", "reported_at"],
        ends: Ends::When("a week after its daemon's end"),
    },
    Decision { table: "journal_entries", removed: &[], kept: &["id", "applied_at"], ends: Ends::WithAudit },
    Decision {
        table: "lane_pauses",
        removed: &["note"],
        kept: &["lane", "paused_by", "at"],
        ends: Ends::Never("one for each lane that is paused now"),
    },
    Decision {
        // Of the values that changed, the notes of people go.
        table: "operator_changes",
        removed: &[],
        kept: &["id", "at", "changed_by", "action", "target", "before", "after"],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "operator_sessions",
        removed: &[],
        kept: &["id", "operator", "proof", "created_at", "seen_at", "expires_at"],
        ends: Ends::When("when it has ended"),
    },
    Decision {
        table: "operator_views",
        removed: &[],
        kept: &["id", "viewed_by", "what", "message_id", "dead_letter_id", "at"],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "operators",
        removed: &[],
        kept: &["id", "name", "created_at"],
        ends: Ends::Never("one for each name that a token has had"),
    },
    Decision {
        table: "outbox",
        removed: &["reason", "metadata"],
        kept: &[
            "id",
            "source",
            "kind",
            "message_id",
            "request_id",
            "attempt",
            "occurred_at",
            "created_at",
            "dead_letter_id",
        ],
        ends: Ends::When("when the broker has its event, or with the audit"),
    },
    Decision {
        table: "rate_reservations",
        removed: &[],
        kept: &["address_hash", "kind", "window_start", "slot", "message_id", "created_at"],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "replay_items",
        removed: &[],
        kept: &[
            "run_id",
            "position",
            "dead_letter_id",
            "request_id",
            "reason",
            "template_key",
            "template_version",
            "result",
            "why",
            "detail",
            "done_at",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        // The filter holds a recipient's keyed hash.
        table: "replay_runs",
        removed: &[],
        kept: &[
            "id",
            "filter",
            "state",
            "rate_per_second",
            "keep_version",
            "plan",
            "letters",
            "replayed",
            "skipped",
            "failed",
            "created_by",
            "created_at",
            "started_at",
            "finished_at",
            "runner_id",
            "lease_until",
            "waits_for",
        ],
        ends: Ends::WithAudit,
    },
    Decision {
        table: "retention_steps",
        removed: &[],
        kept: &["step", "rows_ever", "rows_pass", "begun_at", "ended_at", "error", "place"],
        ends: Ends::Never("one for each step"),
    },
    Decision {
        // The caller's key becomes the request's id: it may be any words, and what it was for is over.
        table: "retransmissions",
        removed: &[],
        kept: &["request_id", "message_id", "repeats", "key", "asked_by", "at", "published_at"],
        ends: Ends::WithAudit,
    },
    Decision { table: "store_facts", removed: &[], kept: &["name", "value"], ends: Ends::Never("a handful") },
    Decision {
        table: "suppression_changes",
        removed: &["note"],
        kept: &["id", "address_hash", "reason", "category", "change", "changed_by", "at"],
        ends: Ends::When("with the audit, once the address is not on the list"),
    },
    Decision {
        table: "suppressions",
        removed: &["address", "note"],
        kept: &["address_hash", "reason", "source", "category", "expires_at", "created_at"],
        ends: Ends::When("with the audit, counted from its end; what has no end goes on keeping mail away"),
    },
    Decision {
        table: "template_generation",
        removed: &[],
        kept: &["only_row", "generation"],
        ends: Ends::Never("one row"),
    },
    Decision {
        table: "webhook_events",
        removed: &["body", "next_look_at"],
        kept: &[
            "id",
            "provider",
            "provider_event_id",
            "published_at",
            "received_at",
            "event_type",
            "relay_message_id",
            "occurred_at",
            "looks",
            "has_marks",
            "matched_at",
        ],
        ends: Ends::When("with the audit, and not before SNS could repeat it"),
    },
];
