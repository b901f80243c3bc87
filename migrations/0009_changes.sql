-- The change log: what operators did, whichever way they came. Lines are added and never changed; they point at nothing, so
-- that they outlive what they tell of, and hold ids and keys, never an address, a value or a payload.
create table operator_changes (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    -- operator:<name>
    changed_by varchar(100) not null,
    -- what was done, for instance template.activate
    action varchar(50) not null,
    -- to which: a key or an id
    target varchar(200) not null,
    -- what it was and what it is, as far as that can be said without a person's data
    before jsonb,
    after jsonb
);
create index operator_changes_target on operator_changes (target, id);
create trigger never_changed before update on operator_changes for each row execute function refuse_to_rewrite();
