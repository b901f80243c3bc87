-- An address can be on the list for several reasons at once: who unsubscribed and bounced later stays unsubscribed when an
-- operator lifts the bounce.
update suppressions set category = '' where category is null;
alter table suppressions
    -- what was unsubscribed from; empty: everything
    alter column category set default '',
    alter column category set not null,
    -- for operators: the bounce's subtype, a relay's words, their own
    add column note varchar(500),
    drop constraint suppressions_pkey,
    -- whoever only asks whether there is one reads the first that the index gives
    add primary key (address_hash, reason, category);
-- The list, newest first, page by page.
create index suppressions_listed on suppressions (created_at, address_hash, reason, category);

-- Who put whom on the list and who took them off again, for good; of the address only its hash.
create table suppression_changes (
    id bigint generated always as identity primary key,
    address_hash bytea not null check (octet_length(address_hash) = 32),
    reason varchar(30) not null,
    category varchar(50) not null,
    change varchar(10) not null check (change in ('added', 'changed', 'lifted')),
    -- smtp, ses, operator:<name> ...
    changed_by varchar(100) not null,
    note varchar(500),
    at timestamptz not null default now()
);
create index suppression_changes_address on suppression_changes (address_hash, id);
