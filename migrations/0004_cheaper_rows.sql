-- What a mail costs the database. The daemon writes each row twice, and by one hand: what its own types guarantee is not
-- checked again for every statement.

-- A request and its mails are inserted by one statement, so that there is never one without the others.
alter table email_messages drop constraint email_messages_request_id_fkey;

-- Closed enums and fixed-size hashes in the daemon; the server would parse each check anew for every statement.
alter table email_messages
    drop constraint email_messages_status_check,
    drop constraint email_messages_settlement_check,
    drop constraint email_messages_bounce_type_check,
    drop constraint email_messages_recipient_hash_check;
alter table email_requests
    drop constraint email_requests_payload_hash_check,
    drop constraint email_requests_priority_check,
    drop constraint email_requests_lane_check;

-- Half of each page is for the update that follows each insert: a batch updates a page's rows all at once, and what finds
-- no room on its page must be entered into every index again.
alter table email_messages set (fillfactor = 50);

-- One index instead of two.
alter table email_timeline drop constraint email_timeline_pkey, add primary key (message_id, id);
drop index email_timeline_message;

-- Ids begin with the time of publication: the primary key is the list of all mails, newest first.
drop index email_messages_created;
create index email_messages_recipient_id on email_messages (recipient_hash, id);
drop index email_messages_recipient;

-- Bodies too long for their row compress several times faster so; a server that was built without lz4 keeps its own way.
do $$
begin
    execute 'alter table email_messages alter column html_content set compression lz4,
        alter column text_content set compression lz4';
    execute 'alter table email_requests alter column variables set compression lz4';
exception when feature_not_supported or syntax_error then
    raise notice 'no lz4 here: bodies are compressed with pglz';
end
$$;
