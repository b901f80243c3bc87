//! All metrics as data: the one place that knows their names, labels and meaning. Instruments are made from these, and
//! `postrider metrics`, `deploy/metrics.md` and the tests read them.
//!
//! Invariant: what is served is listed here, and what is listed here is served.
//! Invariant: labels are closed or small sets. Never an address, never a request id.

use opentelemetry_semantic_conventions::{attribute as semconv, metric};

use super::instrument::Instrument;

/// Seconds from publish to the relay's 250: from a millisecond on loopback to the longest rung of a ladder.
const LATENCY: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 21_600.0];
/// Seconds of one step: from what a step costs on loopback to the longest that a relay is given.
const STEP: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0];
/// Seconds of one fetch: from a file on the next machine to the limit of patience.
const FETCH: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Rows of one commit.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

const LANE: &str = "lane";
const TEMPLATE: &str = "template";
const RELAY: &str = "relay";

macro_rules! instruments {
    ($($(#[$doc:meta])* $name:ident = $instrument:expr;)*) => {
        $($(#[$doc])* pub(super) const $name: Instrument = $instrument;)*

        /// Every metric, by topic.
        pub const INSTRUMENTS: &[Instrument] = &[$($name,)*];
    };
}

instruments! {
    BUILD = Instrument::gauge("postrider.build", &["version"], "1, labelled with the version");
    READY = Instrument::gauge("postrider.ready", &[], "Whether `/readyz` says so: 1 when nothing is known to stand in a mail's way, else 0");
    DATABASE_UP = Instrument::gauge("postrider.database_up", &[], "0 while the database is away, or what was sent meanwhile is being written into it, else 1");

    ACCEPTED = Instrument::counter("email.accepted", &[LANE, TEMPLATE], "Deliveries that held a well-formed request");
    OUTCOMES = Instrument::counter("email.outcomes", &[LANE, TEMPLATE, "outcome"], "Tries, by what the relay said: sent, deferred, rejected or unknown");
    RETRIES = Instrument::counter("email.retries", &[LANE, TEMPLATE, "outcome"], "Tries after which the mail waits for another one, by what the relay said");
    STOPPED = Instrument::counter("email.stopped", &[LANE, TEMPLATE, "status"], "Mails that policy kept from being sent: suppressed, expired or rate_limited");
    DEAD = Instrument::counter("email.dead_letters", &[LANE, TEMPLATE, "reason"], "Dead letters, by reason; template is unknown where no active one has that key");
    SETTLED = Instrument::counter("email.settled", &[LANE, "settlement"], "Deliveries that left their queue, by how");
    OVER_CAP = Instrument::counter("email.over_cap", &[LANE, TEMPLATE, "result"], "Mails whose recipient had had as many as the cap allows: dropped, or deferred");
    REPLAYED = Instrument::counter("email.replayed", &[LANE], "Dead letters that came back to their lane");
    LATENCY_ALL = Instrument::histogram("email.publish_to_accept", &[LANE, TEMPLATE], LATENCY, "From publish to the relay's 250").seconds();
    DEADLINE_MISSED = Instrument::counter("email.deadline_missed", &[LANE, TEMPLATE], "Mails that the relay took later than their template promises");
    IN_FLIGHT = Instrument::gauge("email.in_flight", &[LANE], "Deliveries being worked on");
    WITHOUT_STORE = Instrument::counter("email.sent_without_database", &["kind"], "Tries of the fast lane while the database was away; maybe_repeated: nobody could tell");

    LANE_STATE = Instrument::gauge("email.lane_state", &[LANE, "state"], "1 for the state of the lane's consumer at this daemon: starting, consuming, paused, lost or stopped; 0 for the others");
    QUEUE_DEPTH = Instrument::gauge("email.queue_depth", &[LANE], "Messages in the lane's queue that no consumer holds; told by one daemon for all, use max");
    QUEUE_RETRYING = Instrument::gauge("email.queue_retrying", &[LANE], "Copies that wait for their next try, on all rungs of the lane's ladder; likewise");
    QUEUE_CONSUMERS = Instrument::gauge("email.queue_consumers", &[LANE], "Consumers of the lane's queue, as the broker counts them; likewise");
    QUEUE_AGE = Instrument::gauge("email.queue_age", &[LANE], "Greatest age, since its publish, of what this daemon took from the queue in the last seconds, retry copies left out; 0: it took nothing. AMQP does not tell the age of what still waits").seconds();
    DEAD_QUEUE = Instrument::gauge("email.dead_letter_queue_depth", &[], "Dead letters that no archivist has moved into the database; told by one daemon for all, use max");
    UNROUTED_QUEUE = Instrument::gauge("email.unrouted_queue_depth", &[], "Messages that no binding matched, and that nobody has moved into the database; likewise");

    SMTP_STEP = Instrument::histogram("email.smtp_step", &[RELAY, "phase"], STEP, "How long a step of the SMTP dialogue took: connect, greeting, ehlo, starttls, auth; mail, rcpt, data, content, final_dot").seconds();
    RELAY_UP = Instrument::gauge("email.relay_up", &[RELAY], "0 while the relay cannot be used or puts everybody off, else 1 (also before its first use)");
    RELAY_STATE = Instrument::gauge("email.relay_state", &[RELAY, "state"], "1 for the relay's state: untried, up, paced (it throttles), down (its breaker is open) or on_trial; 0 for the others");
    RELAY_FAULTS = Instrument::counter("email.relay_faults", &[RELAY, "fault"], "Faults of the relay that were met, probes included, by name");
    RELAY_THROTTLED = Instrument::counter("email.relay_throttled", &[RELAY], "Mails that the relay put off because it was given too many");
    RELAY_PACE = Instrument::gauge("email.relay_pace", &[RELAY], "Mails a second that the relay gets at most, because it throttled; 0 while nothing limits it");
    RELAY_CONNECTIONS = Instrument::gauge("email.relay_connections", &[RELAY, LANE, "state"], "Connections to the relay, by lane, in use (in_use) and idle");

    COMMIT_ROWS = Instrument::histogram("email.commit_rows", &["statement", "connections"], ROWS, "Claims or outcomes that were committed together; connections: fast (the fast lane's own) or shared");
    COMMIT_DURATION = Instrument::histogram("email.commit_duration", &["statement", "connections"], STEP, "How long that took").seconds();
    TEMPLATE_VERSION = Instrument::gauge("email.template_active_version", &[TEMPLATE], "The version of each template that this daemon sends");

    FEEDBACK = Instrument::counter("email.feedback", &["kind"], "Events of providers that were applied, by kind; unmatched: their mail is not known (yet)");
    FEEDBACK_RESOLVED = Instrument::counter("email.feedback_resolved", &[], "Mails whose outcome was not known, until an event told that the relay has them");
    FEEDBACK_SUPPRESSED = Instrument::counter("email.feedback_suppressed", &[], "Addresses put on the suppression list by bounces and complaints");
    WEBHOOK_RECEIVED = Instrument::counter("email.webhook_received", &["result"], "Messages that the webhook took, by what they came to");
    WEBHOOK_REFUSED = Instrument::counter("email.webhook_refused", &["reason"], "Messages that the webhook refused for good, by reason: forged, or a setting is wrong");
    UNSUBSCRIBED = Instrument::counter("email.unsubscribed", &["source"], "People who took themselves off marketing mail, by where; once for each time they said so");
    WEBHOOK_FAILED = Instrument::counter("email.webhook_failed", &["fault"], "Messages that the webhook could not take, so that their sender repeats them, by fault");

    HTTP_CONNECTIONS = Instrument::gauge("email.http_connections", &["listener"], "Connections to the admin and the public listener");
    HTTP_REFUSED = Instrument::counter("email.http_refused", &["listener", "reason"], "What a listener did not serve, or ended, by reason: connections (crowded_out, full, handshake), requests (malformed, too large, too slow, host), tokens (wrong_token, too_many_tries)");

    ATTACHMENT_FETCHES = Instrument::counter("email.attachment_fetches", &["source", "result"], "Attachments by reference, by where they lie and what came of it; kept: the attachment store had it");
    ATTACHMENT_FETCH = Instrument::histogram("email.attachment_fetch", &["source"], FETCH, "How long fetching an attachment took, whatever came of it").seconds();
    ATTACHMENT_BYTES = Instrument::counter("email.attachment_fetched_bytes", &["source"], "Bytes of attachments that were fetched and found sound");

    RETENTION_ROWS = Instrument::counter("email.retention_rows", &["action", "table"], "Rows that retention has anonymised or deleted, by table");
    RETENTION_FAILURES = Instrument::counter("email.retention_failures", &["step"], "Steps of retention that failed; all: none could begin");
    RETENTION_OVERDUE = Instrument::gauge("email.retention_overdue", &["action"], "For how long the oldest row has been due that retention has not reached; 0: none is. Only at the daemon that was at work last").seconds();
    RETENTION_ENDED = Instrument::gauge("email.retention_ended", &[], "When this daemon has last done all that was due, seconds since 1970; 0: never");

    EVENTS_PUBLISHED = Instrument::counter("email.events_published", &[], "Events that the broker has confirmed");
    EVENTS_UNBOUND = Instrument::counter("email.events_unbound", &[], "Events that were dropped because no queue was bound to their key");
    EVENTS_WAITING = Instrument::gauge("email.events_waiting", &[], "Age of the oldest event that this daemon has seen and not yet published; 0: none").seconds();

    CONSUMED = Instrument::counter(metric::MESSAGING_CLIENT_CONSUMED_MESSAGES, MESSAGING, "Deliveries taken from a lane's queue");
    PROCESSED = Instrument::histogram(metric::MESSAGING_PROCESS_DURATION, MESSAGING, STEP, "From taking a delivery to its settlement").seconds();
    PUBLISHED = Instrument::counter(metric::MESSAGING_CLIENT_SENT_MESSAGES, MESSAGING, "Retry copies and dead letters that the broker has confirmed");
    PUBLISHING = Instrument::histogram(metric::MESSAGING_CLIENT_OPERATION_DURATION, MESSAGING, STEP, "How long the broker took to confirm one").seconds();

    EXPORTED_SPANS = Instrument::counter("postrider.exported_spans", &["result"], "Spans, by what became of them: exported; dropped (too many waited) or failed (the collector did not take them)");
    EXPORTED_METRICS = Instrument::counter("postrider.exported_metrics", &["result"], "Pushes of all metrics, by what became of them: exported or failed");
}

/// What OpenTelemetry's conventions label messaging with.
const MESSAGING: &[&str] =
    &[semconv::MESSAGING_SYSTEM, semconv::MESSAGING_OPERATION_NAME, semconv::MESSAGING_DESTINATION_NAME];

/// All of them as Markdown: what `postrider metrics --markdown` prints.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         What every daemon serves on `GET /metrics`, and pushes by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Made from the\n\
         instruments' own declarations by `postrider metrics --markdown`.\n\n\
         | metric | kind | labels | meaning | OpenTelemetry's name |\n|---|---|---|---|---|\n",
    );
    for instrument in INSTRUMENTS {
        let labels: Vec<_> = instrument.prometheus_labels().map(|label| format!("`{label}`")).collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | `{}` |\n",
            instrument.prometheus_name(),
            instrument.kind.name(),
            labels.join(", "),
            instrument.description,
            instrument.name,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_md_lists_every_metric() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, markdown()).expect("writable");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == markdown(),
            "deploy/metrics.md is not what the table of metrics says; write it again with:\n\n    UPDATE=1 cargo test metrics_md\n"
        );
    }

    #[test]
    fn each_metric_is_described_once() {
        for (at, instrument) in INSTRUMENTS.iter().enumerate() {
            let Instrument { name, description, .. } = instrument;
            assert!(!INSTRUMENTS[..at].iter().any(|other| other.name == *name), "{name} is there twice");
            assert!(
                !description.is_empty() && !description.ends_with('.') && !description.contains(['\n', '|']),
                "{name}"
            );
            assert!(instrument.buckets.is_sorted_by(|one, next| one < next), "{name}");
        }
    }
}
