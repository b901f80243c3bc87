-- Lanes that operators have paused, for all daemons; a lane without a row runs.
create table lane_pauses (
    lane varchar(10) primary key check (lane in ('fast', 'standard', 'bulk')),
    -- operator:<name>
    paused_by varchar(100) not null,
    note varchar(500),
    at timestamptz not null default now()
);

-- What a running daemon counts, written with its lease; for people only. json, not jsonb: numbers stay as short as they are
-- written, so that the row stays small enough for its page.
alter table email_workers
    add column figures json,
    add column reported_at timestamptz;
