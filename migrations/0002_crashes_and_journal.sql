-- Messages whose worker died, before anything about them was known to be done. Gone again when they leave their queue.
create table email_crashes (
    -- SHA-256 of the AMQP message_id, else of the body: known before a byte of it is decoded
    key bytea primary key check (octet_length(key) = 32),
    -- redeliveries that no row explains, and leases that ran out on its mails
    crashes int not null default 0,
    updated_at timestamptz not null default now()
) with (fillfactor = 70);

-- A message that is being worked on alone. What is never taken away was a crash of its own.
create table email_crash_marks (
    id uuid primary key,
    key bytea not null check (octet_length(key) = 32),
    created_at timestamptz not null default now()
);
create index email_crash_marks_key on email_crash_marks (key);

-- Entries of the fast lane's journal that were written into the audit: each counts once, however often it arrives.
create table journal_entries (
    id uuid primary key,
    applied_at timestamptz not null default now()
);
