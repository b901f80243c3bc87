//! What daemons leave behind: events that nobody took, crashes whose message never left its queue, entries of the journal that were
//! written, leases and sessions that ran out.

use super::{Action, Age, Step, Work, delete_old, due_in_order, due_old, in_order};

pub(super) static FORGET: [Step; 1] = [Step {
    name: "outbox.anonymise",
    action: Action::Anonymise,
    table: "outbox",
    age: Age::Person,
    keeps_place: false,
    // Owed for so long, an event says what happened, and no more.
    work: Work::Rows(
        "with due as materialized (
            select id from outbox where (metadata is not null or reason is not null) and created_at < $1
            order by id limit $2 for update skip locked
         ), forgotten as (
            update outbox set metadata = null, reason = null where id in (select id from due) returning 1
         )
         select (select count(*) from forgotten), (select count(*) from due), $3::text",
    ),
    due: due_old!("outbox", "created_at", "(metadata is not null or reason is not null)"),
}];

pub(super) static DELETE: [Step; 6] = [
    Step {
        name: "outbox.delete",
        action: Action::Delete,
        table: "outbox",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(in_order!("outbox", "created_at", "delete from outbox where true")),
        due: due_in_order!("outbox", "created_at", "true"),
    },
    Step {
        name: "journal_entries.delete",
        action: Action::Delete,
        table: "journal_entries",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(delete_old!("journal_entries", "id", "applied_at", "true")),
        due: due_old!("journal_entries", "applied_at", "true"),
    },
    Step {
        name: "email_crashes.delete",
        action: Action::Delete,
        table: "email_crashes",
        age: Age::Life,
        keeps_place: false,
        work: Work::Rows(delete_old!("email_crashes", "key", "updated_at", "true")),
        due: due_old!("email_crashes", "updated_at", "true"),
    },
    Step {
        name: "email_crash_marks.delete",
        action: Action::Delete,
        table: "email_crash_marks",
        age: Age::Life,
        keeps_place: false,
        work: Work::Rows(delete_old!("email_crash_marks", "id", "created_at", "true")),
        due: due_old!("email_crash_marks", "created_at", "true"),
    },
    Step {
        name: "email_workers.delete",
        action: Action::Delete,
        table: "email_workers",
        age: Age::Worker,
        keeps_place: false,
        work: Work::Rows(delete_old!("email_workers", "id", "lease_until", "true")),
        due: due_old!("email_workers", "lease_until", "true"),
    },
    Step {
        name: "operator_sessions.delete",
        action: Action::Delete,
        table: "operator_sessions",
        age: Age::Over,
        keeps_place: false,
        work: Work::Rows(delete_old!("operator_sessions", "id", "expires_at", "true")),
        due: due_old!("operator_sessions", "expires_at", "true"),
    },
];
