//! Dead letters: their bytes, and everything that came with them, hold the person. A letter is as old as its message, or as its
//! archiving if the message's time is wrong; it is deleted by the time of its archiving.
//!
//! Invariant: a letter that nobody dealt with leaves the list of what waits when its content goes: nothing can be done with it
//! any more.

use super::{Action, Age, Step, Work, delete_old, due_old};

pub(super) static FORGET: [Step; 1] = [Step {
    name: "dead_letters.anonymise",
    action: Action::Anonymise,
    table: "dead_letters",
    age: Age::Person,
    keeps_place: false,
    // Source and template of what nobody could read may be anything; of what was read they are plain words.
    work: Work::Rows(
        "with due as materialized (
            select id, state from dead_letters
            where body is not null and least(first_at, archived_at) < $1
                -- somebody is about to publish it
                and not (state = 'replaying' and replayed_at > $4::timestamptz - interval '1 day')
            order by least(first_at, archived_at) limit $2 for update skip locked
         ), forgotten as (
            update dead_letters d set body = null, error = null, routing_key = null, properties = '{}', headers = '{}',
                source = case when source ~ '^[a-z0-9_-]+$' then source end,
                template_key = case when template_key ~ '^[a-z0-9_-]+$' then template_key end,
                state = case when d.state = 'waiting' then 'discarded' else d.state end
            where id in (select id from due) returning 1
         ), told as (
            insert into dead_letter_discards (dead_letter_id, discarded_by, note, at)
            select id, 'retention', 'its content was removed by anonymising', $4 from due where state = 'waiting'
            on conflict do nothing
         )
         select (select count(*) from forgotten), (select count(*) from due), $3::text",
    ),
    due: due_old!("dead_letters", "least(first_at, archived_at)", "body is not null"),
}];

pub(super) static DELETE: [Step; 1] = [Step {
    name: "dead_letters.delete",
    action: Action::Delete,
    table: "dead_letters",
    age: Age::Record,
    keeps_place: false,
    work: Work::Rows(delete_old!("dead_letters", "id", "archived_at", "body is null")),
    due: due_old!("dead_letters", "archived_at", "body is null"),
}];
