//! The suppression list: the keyed hash goes on keeping mail away, the address and people's words go. An entry is as old as it says.
//!
//! Invariant: the history of an address that is on the list stays: who unsubscribed, or was taken off by whom, may be asked for
//! as long as the entry counts.

use super::{Action, Age, Step, Work, delete_old, due_in_order, due_old, in_order};

pub(super) static FORGET: [Step; 2] = [
    Step {
        name: "suppressions.anonymise",
        action: Action::Anonymise,
        table: "suppressions",
        age: Age::Person,
        keeps_place: false,
        work: Work::Rows(
            "with due as materialized (
                select address_hash, reason, category from suppressions
                where (address is not null or note is not null) and created_at < $1
                order by created_at limit $2 for update skip locked
             ), forgotten as (
                update suppressions s set address = null, note = null from due d
                where (s.address_hash, s.reason, s.category) = (d.address_hash, d.reason, d.category) returning 1
             )
             select (select count(*) from forgotten), (select count(*) from due), $3::text",
        ),
        due: due_old!("suppressions", "created_at", "(address is not null or note is not null)"),
    },
    Step {
        name: "suppression_changes.anonymise",
        action: Action::Anonymise,
        table: "suppression_changes",
        age: Age::Person,
        keeps_place: true,
        work: Work::Rows(in_order!(
            "suppression_changes",
            "at",
            "update suppression_changes set note = null where note is not null"
        )),
        due: due_in_order!("suppression_changes", "at", "note is not null"),
    },
];

pub(super) static DELETE: [Step; 2] = [
    // Those that ran out. What has no end goes on.
    Step {
        name: "suppressions.delete",
        action: Action::Delete,
        table: "suppressions",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(delete_old!("suppressions", "ctid", "expires_at", "created_at < $1")),
        due: due_old!("suppressions", "expires_at", "created_at < $1"),
    },
    Step {
        name: "suppression_changes.delete",
        action: Action::Delete,
        table: "suppression_changes",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(in_order!(
            "suppression_changes",
            "at",
            "delete from suppression_changes c
             where not exists (select from suppressions s where s.address_hash = c.address_hash)"
        )),
        due: due_in_order!(
            "suppression_changes",
            "at",
            "not exists (select from suppressions s where s.address_hash = suppression_changes.address_hash)"
        ),
    },
];
