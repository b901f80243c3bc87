//! What operators did: lines hold ids and keys, and notes that people wrote, which may name anybody whatever they were told. The
//! notes go first.

use super::{Action, Age, Step, Work, delete_old, due_in_order, due_old, in_order};

pub(super) static FORGET: [Step; 3] = [
    Step {
        name: "operator_changes.anonymise",
        action: Action::Anonymise,
        table: "operator_changes",
        age: Age::Person,
        keeps_place: true,
        work: Work::Rows(in_order!(
            "operator_changes",
            "at",
            "update operator_changes set before = before - 'note', after = after - 'note'
             where (jsonb_exists(before, 'note') or jsonb_exists(after, 'note'))"
        )),
        due: due_in_order!(
            "operator_changes",
            "at",
            "coalesce(jsonb_exists(before, 'note'), false) or coalesce(jsonb_exists(after, 'note'), false)"
        ),
    },
    Step {
        name: "dead_letter_discards.anonymise",
        action: Action::Anonymise,
        table: "dead_letter_discards",
        age: Age::Person,
        keeps_place: false,
        work: Work::Rows(
            "with due as materialized (
                select dead_letter_id from dead_letter_discards
                where note is not null and discarded_by <> 'retention' and at < $1 limit $2 for update skip locked
             ), forgotten as (
                update dead_letter_discards set note = null where dead_letter_id in (select dead_letter_id from due)
                returning 1
             )
             select (select count(*) from forgotten), (select count(*) from due), $3::text",
        ),
        due: due_old!("dead_letter_discards", "at", "note is not null and discarded_by <> 'retention'"),
    },
    Step {
        name: "lane_pauses.anonymise",
        action: Action::Anonymise,
        table: "lane_pauses",
        age: Age::Person,
        keeps_place: false,
        work: Work::Rows(
            "with forgotten as (
                update lane_pauses set note = null where note is not null and at < $1 returning 1
             )
             select (select count(*) from forgotten), (select count(*) from forgotten), $3::text",
        ),
        due: due_old!("lane_pauses", "at", "note is not null"),
    },
];

pub(super) static DELETE: [Step; 6] = [
    Step {
        name: "operator_views.delete",
        action: Action::Delete,
        table: "operator_views",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(in_order!("operator_views", "at", "delete from operator_views where true")),
        due: due_in_order!("operator_views", "at", "true"),
    },
    Step {
        name: "operator_changes.delete",
        action: Action::Delete,
        table: "operator_changes",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(in_order!("operator_changes", "at", "delete from operator_changes where true")),
        due: due_in_order!("operator_changes", "at", "true"),
    },
    Step {
        name: "dead_letter_discards.delete",
        action: Action::Delete,
        table: "dead_letter_discards",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(delete_old!("dead_letter_discards", "dead_letter_id", "at", "true")),
        due: due_old!("dead_letter_discards", "at", "true"),
    },
    // Letters first: a run may have a hundred thousand of them. One that is at work ends before it goes.
    Step {
        name: "replay_items.delete",
        action: Action::Delete,
        table: "replay_items",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(
            "with due as materialized (
                select i.run_id, i.position from replay_runs r join replay_items i on i.run_id = r.id
                where r.created_at < $1 and r.state <> 'running' limit $2
             ), gone as (
                delete from replay_items i using due d where (i.run_id, i.position) = (d.run_id, d.position) returning 1
             )
             select (select count(*) from gone), (select count(*) from due), $3::text",
        ),
        due: "select count(*), min(created_at) from (
                select r.created_at from replay_runs r join replay_items i on i.run_id = r.id
                where r.created_at < $1 and r.state <> 'running' limit $2) as found",
    },
    Step {
        name: "replay_runs.delete",
        action: Action::Delete,
        table: "replay_runs",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(delete_old!(
            "replay_runs",
            "id",
            "created_at",
            "state <> 'running' and not exists (select from replay_items i where i.run_id = replay_runs.id)"
        )),
        due: due_old!("replay_runs", "created_at", "state <> 'running'"),
    },
    Step {
        name: "retransmissions.delete",
        action: Action::Delete,
        table: "retransmissions",
        age: Age::Record,
        keeps_place: false,
        work: Work::Rows(delete_old!("retransmissions", "request_id", "at", "true")),
        due: due_old!("retransmissions", "at", "true"),
    },
];
