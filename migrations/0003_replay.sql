-- A dead letter that is replayed says so before its copy is published, with the generation that the copy carries: whoever
-- finds it so publishes the same copy again, and nobody raises the generation twice for one failure.
alter table dead_letters
    drop constraint dead_letters_state_check,
    add constraint dead_letters_state_check check (state in ('waiting', 'replaying', 'replayed', 'discarded')),
    -- of the copy; the letter's own where there are no rows whose generation could be raised
    add column replay_generation int,
    -- the copy's x-replayed-at-ms, the same however often it is published
    add column replayed_at timestamptz,
    add constraint dead_letters_replay_check
        check (state in ('waiting', 'discarded') or replay_generation is not null and replayed_at is not null);
-- What an operator has to look at, however many have been dealt with.
create index dead_letters_open on dead_letters (archived_at, id) where state in ('waiting', 'replaying');
