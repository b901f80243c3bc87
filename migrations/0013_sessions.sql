-- Operators who signed in to the pages. The browser keeps a secret; here is only its hash, and a proof that the operator's
-- token is still the one it was made with: a token that is changed or withdrawn ends its sessions.
create table operator_sessions (
    id bytea primary key check (octet_length(id) = 32),
    -- the token's name
    operator varchar(100) not null,
    proof bytea not null check (octet_length(proof) = 32),
    created_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index operator_sessions_expires on operator_sessions (expires_at);
