-- What providers tell of mails that were sent. The table of 0001 was never written to: it is made anew, with what its reader
-- needs to look again for a mail that is not known yet.
drop table webhook_events;
create table webhook_events (
    id bigint generated always as identity primary key,
    provider varchar(20) not null,
    -- the provider's own id for this delivery of the event (SNS MessageId)
    provider_event_id varchar(200) not null,
    -- as it came, before it is understood; null once anonymised
    body text,
    published_at timestamptz not null,
    received_at timestamptz not null default now(),
    -- read from the body
    event_type varchar(50),
    relay_message_id varchar(255),
    occurred_at timestamptz,
    -- when to look for its mail; null: done, or given up
    next_look_at timestamptz default now(),
    looks int not null default 0,
    -- whether it gave any header or tag of the mail back
    has_marks boolean,
    -- null: no mail of ours is known for it
    matched_at timestamptz,
    unique (provider, provider_event_id)
);
-- What is new comes first, however much is looked at again.
create index webhook_events_new on webhook_events (id) where looks = 0 and next_look_at is not null;
create index webhook_events_due on webhook_events (next_look_at) where looks > 0 and next_look_at is not null;
-- What the report of events for nobody reads.
create index webhook_events_for_nobody on webhook_events (received_at) where matched_at is null;

-- Where a mail stands by all that was told of it: each column takes the least or the greatest of what its events say, so
-- that their order and their repetition make no difference.
alter table email_messages
    add column bounced_at timestamptz,
    add column complained_at timestamptz,
    add column complaint_type varchar(50);

do $$
begin
    execute 'alter table webhook_events alter column body set compression lz4';
exception when feature_not_supported or syntax_error then
    raise notice 'no lz4 here: events are compressed with pglz';
end
$$;
