//! What providers told, as it came: the body of an event names the person, whether or not it found its mail. A receipt is as old
//! as its arrival; what is left of it keeps a repetition from counting twice.

use super::{Action, Age, Step, Work, due_in_order, in_order};

pub(super) static FORGET: [Step; 1] = [Step {
    name: "webhook_events.anonymise",
    action: Action::Anonymise,
    table: "webhook_events",
    age: Age::Person,
    keeps_place: true,
    // Whoever still looked for its mail has nothing to look with any more.
    work: Work::Rows(in_order!(
        "webhook_events",
        "received_at",
        "update webhook_events set body = null, next_look_at = null where (body is not null or next_look_at is not null)"
    )),
    due: due_in_order!("webhook_events", "received_at", "body is not null"),
}];

pub(super) static DELETE: [Step; 1] = [Step {
    name: "webhook_events.delete",
    action: Action::Delete,
    table: "webhook_events",
    age: Age::Receipt,
    keeps_place: false,
    work: Work::Rows(in_order!("webhook_events", "received_at", "delete from webhook_events where body is null")),
    due: due_in_order!("webhook_events", "received_at", "body is null"),
}];
