-- Events owed to producers. A row is written in the transaction that changes a mail's status, and deleted when the broker
-- has confirmed its event; the event itself is made from the mail then, so that this row stays narrow.
drop table outbox;
create table outbox (
    id bigint generated always as identity primary key,
    -- both make the routing key, <source>.<kind>
    source text not null,
    kind text not null,
    -- null: of a request that no queue took, which has no mails
    message_id uuid,
    request_id uuid,
    attempt int not null,
    reason text,
    occurred_at timestamptz not null,
    -- since when it is owed
    created_at timestamptz not null default now(),
    -- of a request that no queue took: where the rest of it is, and what its producer wants echoed
    dead_letter_id uuid,
    metadata jsonb
) with (
    -- Rows come and go by the thousand: vacuum is to come often, and must not lock the table to give its end back.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    vacuum_truncate = off);

-- Whoever changes a status, and by whichever statement, tells of it: a status never changes without its event.
-- `postrider.events` is what EMAIL_EVENTS says, set by each session that does not want the default, `final`.

-- Once a statement, not once a row: a batch of outcomes pays for one call. The pipeline's sessions have no hash joins, which
-- suits every statement of theirs but this one.
create function tell_of_changed_mails() returns trigger language plpgsql set enable_hashjoin = on as $$
begin
    insert into outbox (source, kind, message_id, request_id, attempt, reason, occurred_at)
    select n.source_endpoint,
        case
            when n.status <> 'queued' then n.status
            when n.deferrals > o.deferrals then 'deferred'
            when o.status in ('failed', 'unknown') then 'replayed'
            else 'queued'
        end,
        n.id, n.request_id, n.attempts,
        case n.status
            when 'suppressed' then coalesce(nullif(split_part(n.error_message, ': ', 2), ''), n.error_message)
            when 'bounced' then concat_ws('/', n.bounce_type, n.bounce_subtype)
            when 'complaint' then n.complaint_type
            else n.reason
        end,
        -- these are told later than they happened where a journal is written or feedback had to wait
        case n.status
            when 'sent' then coalesce(n.sent_at, now())
            when 'delivered' then coalesce(n.delivered_at, now())
            when 'bounced' then coalesce(n.bounced_at, now())
            when 'complaint' then coalesce(n.complained_at, now())
            else now()
        end
    from after_change n join before_change o on o.id = n.id
    where (n.status <> o.status or n.deferrals > o.deferrals
            -- for now it had come back already, now it is for good
            or n.status = 'bounced' and n.bounce_type is distinct from o.bounce_type)
        and case when n.status in ('queued', 'sending', 'unknown')
            then current_setting('postrider.events', true) = 'all'
            else current_setting('postrider.events', true) is distinct from 'off' end;
    return null;
end
$$;
create trigger tell_of_changed_mails after update on email_messages
    referencing old table as before_change new table as after_change
    for each statement execute function tell_of_changed_mails();

-- Nearly all mails begin as `sending`, of which only EMAIL_EVENTS=all tells: the condition spares them the call.
create function tell_of_new_mail() returns trigger language plpgsql as $$
begin
    insert into outbox (source, kind, message_id, request_id, attempt, reason, occurred_at) values (
        new.source_endpoint, new.status, new.id, new.request_id, new.attempts,
        case new.status when 'suppressed' then coalesce(nullif(split_part(new.error_message, ': ', 2), ''), new.error_message)
            else new.reason end, now());
    return null;
end
$$;
create trigger tell_of_new_mail after insert on email_messages for each row
    when (case when new.status in ('queued', 'sending', 'unknown')
        then current_setting('postrider.events', true) = 'all'
        else current_setting('postrider.events', true) is distinct from 'off' end)
    execute function tell_of_new_mail();
