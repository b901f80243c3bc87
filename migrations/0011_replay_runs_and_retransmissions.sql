-- Replays as runs that outlive whoever began them, and recorded mails that are sent again. The first tables of replays were
-- never written to.
drop table replay_items;
drop table replay_runs;

-- A replay of dead letters: what was asked, what was planned, and how far it is.
create table replay_runs (
    -- in the order of their making
    id uuid primary key,
    -- which letters were asked for, in words that name no person: of a recipient it holds the keyed hash
    filter jsonb not null,
    state varchar(20) not null default 'planned'
        check (state in ('planned', 'running', 'paused', 'done', 'cancelled')),
    rate_per_second int not null check (rate_per_second between 1 and 1000),
    -- send the words of the first time instead of those of the active version
    keep_version boolean not null,
    -- what would become of its letters, by template and version and by why not, as it was when it was made
    plan jsonb not null,
    -- all of its letters, and what has become of them; the rest is open
    letters int not null,
    replayed int not null default 0,
    skipped int not null default 0,
    failed int not null default 0,
    -- operator:<name>
    created_by varchar(100) not null,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    -- who is at it, and until when nobody else may be
    runner_id uuid,
    lease_until timestamptz,
    -- why it does not move, if it should and does not
    waits_for varchar(500)
) with (fillfactor = 50);
-- What daemons look for, however many there have been.
create index replay_runs_running on replay_runs (id) where state = 'running';

-- A letter of a run. It points at nothing, so that the run can be read when retention has deleted the letter.
create table replay_items (
    run_id uuid not null references replay_runs on delete cascade,
    -- the order in which letters are taken, from 0
    position int not null,
    dead_letter_id uuid not null,
    request_id uuid,
    reason varchar(40) not null,
    template_key varchar(100),
    -- whose words it was planned to send, where that was known
    template_version int,
    -- null: still open
    result varchar(10) check (result in ('replayed', 'skipped', 'failed')),
    -- for programs and for people: why it was skipped, or failed
    why varchar(30),
    detail varchar(500),
    done_at timestamptz,
    primary key (run_id, position)
);
create index replay_items_open on replay_items (run_id, position) where result is null;
-- In which runs a letter was.
create index replay_items_letter on replay_items (dead_letter_id);

-- A recorded mail that an operator sent again: a request of ours, whose rows were written before its message was published. A
-- producer cannot make one: what is sent is what the rows hold, and they are written by nobody else.
create table retransmissions (
    -- the new request, and its one mail
    request_id uuid primary key,
    message_id uuid not null unique,
    -- the mail that it repeats
    repeats uuid not null,
    -- the caller's: the same for a mail is sent once
    key varchar(100) not null,
    -- operator:<name>
    asked_by varchar(100) not null,
    at timestamptz not null default now(),
    -- when the broker confirmed its message; until then it is owed
    published_at timestamptz,
    unique (repeats, key)
);
create index retransmissions_owed on retransmissions (at) where published_at is null;

-- Files go out again in the order in which they were given. All before this had none.
alter table email_attachments add column ordinal int not null default 0;

-- What waits, by reason and template: read from the index alone, however large the letters are.
create index dead_letters_open_groups on dead_letters (reason, template_key) include (archived_at)
    where state in ('waiting', 'replaying');
