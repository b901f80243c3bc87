//! Requests with their mails, timelines and files: whole requests, oldest first.
//!
//! Invariant: a mail that may still go out is left alone. One that waits longer than anything waits is settled before its person
//! is forgotten: what was never sent expires (its producer is told), and what may have been is left unknown. Neither can be
//! sent afterwards: there is nobody to send it to.
//! Invariant: a request is deleted together with all of its mails, and only when its person is forgotten.

use super::{Act, Action, Age, Step, Work};

/// Longest since it moved and not final: nothing brings it on its way any more.
macro_rules! pick_to_forget {
    ($which:literal) => {
        concat!(
            "with candidates as materialized (
                select id, published_at from email_requests
                where anonymised_at is null and ",
            $which,
            " and (published_at, id) > (
                    split_part(coalesce($3::text, '-infinity|00000000-0000-0000-0000-000000000000'), '|', 1)::timestamptz,
                    split_part(coalesce($3::text, '-infinity|00000000-0000-0000-0000-000000000000'), '|', 2)::uuid)
                order by published_at, id limit $2 for no key update skip locked
             ), mails as materialized (
                select id, request_id,
                    (status in ('queued', 'sending') or status = 'unknown' and not held) and updated_at >= $5 as moves
                from email_messages where request_id = any(array(select id from candidates))
                order by id for no key update skip locked
             ), ready as materialized (
                select c.id from candidates c
                left join (select request_id, count(*) as mails, bool_or(moves) as moves from mails group by request_id) as h
                    on h.request_id = c.id
                -- all of them are in our hands, and none of them is under way
                where not coalesce(h.moves, false)
                    and coalesce(h.mails, 0) = (select count(*) from email_messages m where m.request_id = c.id)
             )
             select array(select id from ready),
                array(select id from mails where request_id in (select id from ready)),
                (select count(*) from candidates),
                (select published_at || '|' || id from candidates order by published_at desc, id desc limit 1)"
        )
    };
}

macro_rules! due_to_forget {
    ($which:literal) => {
        concat!(
            "select count(*), min(published_at) from (
                select published_at from email_requests where anonymised_at is null and ",
            $which,
            " order by published_at limit $2) as found"
        )
    };
}

macro_rules! pick_to_delete {
    ($which:literal) => {
        concat!(
            "with old as materialized (
                select request_id, id from email_messages m
                where ",
            $which,
            " and id > coalesce($3::text, '00000000-0000-0000-0000-000000000000')::uuid order by id limit $2
             ), kept as materialized (
                select id from email_requests
                where id in (select request_id from old) and anonymised_at is null
             ), requests as materialized (
                select distinct request_id from old where request_id not in (select id from kept)
             ), mails as materialized (
                select id from email_messages where request_id = any(array(select request_id from requests))
                order by id for update
             )
             select array(select request_id from requests), array(select id from mails), (select count(*) from old),
                (select id::text from old order by id desc limit 1)"
        )
    };
}

macro_rules! due_to_delete {
    ($which:literal) => {
        concat!(
            "select count(*), min(created_at) from (
                select created_at from email_messages where ",
            $which,
            " order by id limit $2) as found"
        )
    };
}

const FORGETTING: &[Act] = &[
    Act {
        table: "email_timeline",
        sql: "update email_timeline set reply_text = null, error = null
              where message_id = any($2) and (reply_text is not null or error is not null)",
    },
    Act {
        table: "email_attachments",
        sql: "delete from email_attachments
              where message_id = any($2)",
    },
    Act {
        // The caller's own key may name anybody. What it was for, sending the mail again, is over.
        table: "retransmissions",
        sql: "update retransmissions set key = request_id::text
              where repeats = any($2) and key <> request_id::text",
    },
    Act {
        // What waited until now, before its row says something else.
        table: "email_timeline",
        sql: "insert into email_timeline (message_id, at, kind, attempt, error)
              select id, $3, case status when 'queued' then 'expired' else 'unknown' end, attempts, case status
                when 'queued' then 'it still waited when its person was to be forgotten'
                else 'nobody knew whether it was sent when its person was to be forgotten' end
              from email_messages
              where id = any($2) and (status in ('queued', 'sending') or status = 'unknown' and not held)",
    },
    Act {
        table: "email_messages",
        sql: "update email_messages m set
                recipient_email = null, recipient_name = null, subject = null, html_content = null, text_content = null,
                error_message = null, due_at = null,
                status = case status when 'queued' then 'expired' when 'sending' then 'unknown' else status end,
                held = held or status in ('sending', 'unknown'),
                settlement = case when status in ('queued', 'sending') or status = 'unknown' and not held
                    then 'none' else settlement end,
                updated_at = case when status in ('queued', 'sending') or status = 'unknown' and not held
                    then $3 else updated_at end
              where id = any($2)",
    },
    Act {
        table: "email_requests",
        sql: "update email_requests set variables = null, metadata = '{}', reply_to = null, anonymised_at = $3
              where id = any($1)",
    },
];

const DELETING: &[Act] = &[
    Act {
        table: "email_timeline",
        sql: "delete from email_timeline
              where message_id = any($2)",
    },
    Act {
        table: "email_attachments",
        sql: "delete from email_attachments
              where message_id = any($2)",
    },
    Act {
        table: "rate_reservations",
        sql: "delete from rate_reservations
              where message_id = any($2)",
    },
    Act {
        table: "email_messages",
        sql: "delete from email_messages
              where id = any($2)",
    },
    Act {
        table: "email_requests",
        sql: "delete from email_requests
              where id = any($1)",
    },
];

pub(super) static FORGET: [Step; 2] = [
    Step {
        name: "mails.anonymise",
        action: Action::Anonymise,
        table: "email_requests",
        age: Age::Person,
        keeps_place: false,
        work: Work::Mails { pick: pick_to_forget!("published_at < $1"), acts: FORGETTING },
        due: due_to_forget!("published_at < $1"),
    },
    // A producer's clock was ahead, and its mails would be due years after they were written: these go by ours.
    Step {
        name: "mails_ahead.anonymise",
        action: Action::Anonymise,
        table: "email_requests",
        age: Age::Person,
        keeps_place: false,
        work: Work::Mails {
            pick: pick_to_forget!("published_at > $4::timestamptz + interval '1 day' and created_at < $1"),
            acts: FORGETTING,
        },
        due: due_to_forget!("published_at > $4::timestamptz + interval '1 day' and created_at < $1"),
    },
];

pub(super) static DELETE: [Step; 2] = [
    Step {
        name: "mails.delete",
        action: Action::Delete,
        table: "email_messages",
        age: Age::Record,
        keeps_place: false,
        work: Work::Mails { pick: pick_to_delete!("id < $6::uuid"), acts: DELETING },
        due: due_to_delete!("id < $5::uuid"),
    },
    Step {
        name: "mails_ahead.delete",
        action: Action::Delete,
        table: "email_messages",
        age: Age::Record,
        keeps_place: false,
        work: Work::Mails { pick: pick_to_delete!("id >= $7::uuid and created_at < $1"), acts: DELETING },
        due: due_to_delete!("id >= $6::uuid and created_at < $1"),
    },
];
