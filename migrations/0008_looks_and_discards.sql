-- What operators do with persons' mail and with dead letters, for good: lines are added and never changed. They point at
-- nothing, so that they outlive what they tell of.

-- Who looked at whose mail.
create table operator_views (
    id bigint generated always as identity primary key,
    -- operator:<name>
    viewed_by varchar(100) not null,
    -- its details, one of its bodies, or the dead letter of its request
    what varchar(20) not null check (what in ('details', 'html', 'text', 'dead_letter')),
    message_id uuid,
    dead_letter_id uuid,
    at timestamptz not null default now(),
    check (num_nonnulls(message_id, dead_letter_id) = 1)
);
create index operator_views_message on operator_views (message_id, id) where message_id is not null;
create index operator_views_dead_letter on operator_views (dead_letter_id, id) where dead_letter_id is not null;

-- Who discarded which dead letter, and why. A letter is discarded once.
create table dead_letter_discards (
    dead_letter_id uuid primary key,
    discarded_by varchar(100) not null,
    note varchar(500),
    at timestamptz not null default now()
);

-- Retention may delete; nobody may rewrite.
create function refuse_to_rewrite() returns trigger language plpgsql as $$
begin
    raise exception 'lines of % are never changed', tg_table_name using errcode = 'restrict_violation';
end
$$;
create trigger never_changed before update on operator_views for each row execute function refuse_to_rewrite();
create trigger never_changed before update on dead_letter_discards for each row execute function refuse_to_rewrite();
