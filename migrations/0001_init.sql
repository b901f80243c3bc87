-- The audit of every mail. What is inserted once is apart from what changes, so that a mail costs one insert and one
-- in-place (HOT) update: no index covers a column that changes while a mail is on its way.

-- Who did something: a UUID for each token name, so that created_by and updated_by have something to point at.
create table operators (
    id uuid primary key default gen_random_uuid(),
    name varchar(100) not null unique,
    created_at timestamptz not null default now()
);

-- One row for each template key: a copy of its active version, in the original's columns.
create table email_templates (
    id uuid primary key default gen_random_uuid(),
    key varchar(100) not null unique,
    subject text not null,
    html_content text not null,
    text_content text not null,
    required_variables text[] not null,
    attachments_allowed boolean not null default false,
    category varchar(50) not null,
    version int not null default 1,
    is_active boolean not null default true,
    created_by uuid references operators,
    created_at timestamptz not null default now(),
    updated_by uuid references operators,
    updated_at timestamptz not null default now()
);

-- Every version, immutable and complete: the shared partials it uses are part of it, so that a retry next week sends
-- the same words.
create table email_template_versions (
    id uuid primary key default gen_random_uuid(),
    template_key varchar(100) not null,
    version int not null check (version > 0),
    -- the version as one document: manifest, parts, partials, sample
    source jsonb not null,
    checksum bytea not null check (octet_length(checksum) = 32),
    created_by uuid references operators,
    created_at timestamptz not null default now(),
    unique (template_key, version)
);

-- One number that rises with every activation: daemons poll it instead of the templates.
create table template_generation (
    only_row boolean primary key default true check (only_row),
    generation bigint not null default 0
);
insert into template_generation default values;

-- A running daemon. A claimed mail names its daemon, so that renewing every lease is one update of one row.
create table email_workers (
    id uuid primary key,
    started_at timestamptz not null default now(),
    lease_until timestamptz not null
) with (fillfactor = 50);

-- One row for each request: the idempotency key and what the audit keeps of it.
create table email_requests (
    id uuid primary key,
    payload_hash bytea not null check (octet_length(payload_hash) = 32),
    source varchar(100) not null,
    template_key varchar(100) not null,
    -- fixed by the first claim; null again when a replay shall use the active version
    template_version int,
    priority smallint not null check (priority between 0 and 3),
    lane varchar(10) not null check (lane in ('fast', 'standard', 'bulk')),
    locale varchar(35),
    reply_to text,
    variables jsonb,
    metadata jsonb not null default '{}',
    published_at timestamptz not null,
    not_before timestamptz,
    expires_at timestamptz,
    -- raised by a replay; copies that carry a lower one are duplicates
    generation int not null default 0,
    -- the newest retry copy that the broker confirmed; copies that carry a lower number are duplicates
    copy_no int not null default 0,
    -- a retransmission of a recorded mail points at the message it repeats
    retransmission_of uuid,
    created_at timestamptz not null default now()
) with (fillfactor = 90, toast_tuple_target = 256);

-- One row for each request and recipient.
create table email_messages (
    id uuid primary key,
    request_id uuid not null references email_requests,
    -- keyed hash of the normalised address: what is left of the person after anonymising
    recipient_hash bytea not null check (octet_length(recipient_hash) = 32),
    ordinal smallint not null,
    template_key varchar(100) not null,
    template_version int,
    recipient_email varchar(320),
    recipient_name varchar(255),
    subject text,
    html_content text,
    text_content text,
    attachments_count int not null default 0,
    status varchar(20) not null check (status in ('queued', 'sending', 'unknown', 'sent', 'delivered', 'bounced',
        'complaint', 'failed', 'suppressed', 'rate_limited', 'expired')),
    -- our Message-ID, with its angle brackets: the same for every try of this mail
    message_id text not null,
    attempts int not null default 0,
    -- how often it was put off, counted or not: picks the rung of the ladder
    deferrals int not null default 0,
    -- queued or unknown: when it may be tried next
    due_at timestamptz,
    -- unknown and left to an operator
    held boolean not null default false,
    -- a retry copy or dead letter is owed (pending) or confirmed by the broker (done)
    settlement varchar(10) not null default 'none' check (settlement in ('none', 'pending', 'done')),
    -- made by the claimer before it asks, so that a claim whose commit was lost on the wire knows itself again
    token uuid,
    worker_id uuid,
    reason varchar(40),
    error_message text,
    sent_at timestamptz,
    delivered_at timestamptz,
    bounce_type varchar(20) check (bounce_type in ('permanent', 'temporary')),
    bounce_subtype varchar(50),
    source_endpoint varchar(100) not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (request_id, recipient_hash)
) with (fillfactor = 70, toast_tuple_target = 256);
-- "Did they get it?": newest first for one address.
create index email_messages_recipient on email_messages (recipient_hash, created_at desc, id desc);
create index email_messages_created on email_messages (created_at desc, id desc);

-- What happened to each mail, in order; never changed.
create table email_timeline (
    id bigint generated always as identity primary key,
    message_id uuid not null,
    at timestamptz not null default now(),
    -- sent, deferred, rejected, unknown, failed, suppressed, expired, replayed ...
    kind varchar(20) not null,
    attempt int not null,
    -- publish to this moment, for what was sent
    latency_ms bigint,
    relay varchar(255),
    phase varchar(20),
    reply_code smallint,
    reply_text text,
    -- the relay's own id for the mail, as SES names it in its events
    relay_message_id varchar(255),
    error text
);
create index email_timeline_message on email_timeline (message_id, id);
create index email_timeline_relay_message on email_timeline (relay_message_id) where relay_message_id is not null;

-- The bytes of attachments, once each.
create table attachment_blobs (
    sha256 bytea primary key check (octet_length(sha256) = 32),
    size_bytes int not null,
    -- null when they lie in an object store
    data bytea,
    location text,
    created_at timestamptz not null default now(),
    check (data is not null or location is not null)
);
-- Mail attachments are compressed already (PDF, PNG, JPEG): do not try again.
alter table attachment_blobs alter column data set storage external;

create table email_attachments (
    id uuid primary key default gen_random_uuid(),
    message_id uuid not null references email_messages on delete cascade,
    filename varchar(255) not null,
    content_type varchar(100) not null,
    content_id varchar(255),
    size_bytes int not null,
    sha256 bytea not null references attachment_blobs,
    created_at timestamptz not null default now()
);
create index email_attachments_message on email_attachments (message_id);
create index email_attachments_blob on email_attachments (sha256);

-- What failed for good, as it arrived at the dead-letter queue, and what no binding matched.
create table dead_letters (
    id uuid primary key,
    -- covers request, payload hash and generation; else a hash of bytes and headers: archived once, however often it arrives
    settlement_key text not null unique,
    reason varchar(40) not null,
    error text,
    request_id uuid,
    source varchar(100),
    template_key varchar(100),
    lane varchar(10),
    attempts int,
    routing_key text,
    first_at timestamptz,
    last_at timestamptz,
    generation int not null default 0,
    properties jsonb not null,
    headers jsonb not null,
    -- null once anonymised
    body bytea,
    body_bytes int not null,
    state varchar(20) not null default 'waiting' check (state in ('waiting', 'replayed', 'discarded')),
    archived_at timestamptz not null default now()
);
create index dead_letters_archived on dead_letters (archived_at desc, id desc);
create index dead_letters_request on dead_letters (request_id) where request_id is not null;

-- Who may not get mail.
create table suppressions (
    address_hash bytea primary key check (octet_length(address_hash) = 32),
    -- null once anonymised
    address varchar(320),
    reason varchar(30) not null check (reason in ('hard_bounce', 'complaint', 'unsubscribe', 'operator')),
    source varchar(100) not null,
    category varchar(50),
    expires_at timestamptz,
    created_by uuid references operators,
    created_at timestamptz not null default now()
);

-- Who had how much marketing mail in which window; reserved in the claim's own transaction.
create table rate_reservations (
    address_hash bytea not null check (octet_length(address_hash) = 32),
    kind varchar(20) not null,
    -- first moment of the day or week in EMAIL_TIMEZONE
    window_start timestamptz not null,
    slot int not null,
    message_id uuid not null,
    created_at timestamptz not null default now(),
    primary key (address_hash, kind, window_start, slot)
);
create index rate_reservations_message on rate_reservations (message_id);

-- Feedback as it came, before it was understood; each SNS MessageId once.
create table webhook_events (
    id uuid primary key default gen_random_uuid(),
    provider varchar(20) not null,
    provider_event_id text not null,
    event_type varchar(50) not null,
    relay_message_id varchar(255),
    body jsonb not null,
    occurred_at timestamptz,
    received_at timestamptz not null default now(),
    -- null: no mail of ours is known for it yet
    matched_at timestamptz,
    unique (provider, provider_event_id)
);
create index webhook_events_unmatched on webhook_events (received_at) where matched_at is null;

-- Events owed to producers; written with the outcome, deleted when the broker confirmed them.
create table outbox (
    id bigint generated always as identity primary key,
    routing_key text not null,
    body bytea not null,
    created_at timestamptz not null default now()
);

-- A replay of dead letters: what was asked, and how far it is.
create table replay_runs (
    id uuid primary key default gen_random_uuid(),
    filter jsonb not null,
    state varchar(20) not null default 'planned' check (state in ('planned', 'running', 'paused', 'done', 'cancelled')),
    rate_per_second int,
    created_by uuid references operators,
    created_at timestamptz not null default now(),
    finished_at timestamptz
);
create table replay_items (
    run_id uuid not null references replay_runs on delete cascade,
    dead_letter_id uuid not null references dead_letters on delete cascade,
    result varchar(30),
    detail text,
    done_at timestamptz,
    primary key (run_id, dead_letter_id)
);

-- What must stay the same for this database's life, for instance which EMAIL_HASH_KEY made its hashes.
create table store_facts (
    name varchar(50) primary key,
    value text not null
);
