-- Who is forgotten after EMAIL_AUTO_ANONYMIZE_AFTER_DAYS, what is deleted after EMAIL_AUDIT_RETENTION_DAYS, and how far that is.

-- When the person was removed from a request and from its mails; null: not yet.
alter table email_requests add column anonymised_at timestamptz;
-- What is still to be done, oldest first. It holds nothing of what is done, however large the audit grows; a request enters at
-- its end, and none of the columns that change while its mails are on their way is in it.
create index email_requests_with_person on email_requests (published_at, id) where anonymised_at is null;
create index dead_letters_with_content on dead_letters (least(first_at, archived_at)) where body is not null;
create index suppressions_with_person on suppressions (created_at) where address is not null or note is not null;

-- What each step of retention has done. One row a step, written with the rows that it tells of.
create table retention_steps (
    step varchar(50) primary key,
    -- ever, and in the pass that runs or ran last
    rows_ever bigint not null default 0,
    rows_pass bigint not null default 0,
    -- of that pass
    begun_at timestamptz not null,
    ended_at timestamptz,
    -- why it did not come to its end
    error varchar(500),
    -- up to where nothing is left, for tables that only grow at their end
    place text
) with (fillfactor = 50);

-- Retention may delete, and may take away what might name a person; nobody may rewrite. Its session says who it is.
create or replace function refuse_to_rewrite() returns trigger language plpgsql as $$
begin
    if current_setting('postrider.retention', true) = 'on' then
        return new;
    end if;
    raise exception 'lines of % are never changed', tg_table_name using errcode = 'restrict_violation';
end
$$;

-- The planner's statistics hold samples of what is in a column, and a person's data must not outlive the column there. Nothing is
-- looked for by these.
alter table email_requests alter column reply_to set statistics 0, alter column variables set statistics 0,
    alter column metadata set statistics 0;
alter table email_messages alter column recipient_email set statistics 0, alter column recipient_name set statistics 0,
    alter column subject set statistics 0, alter column html_content set statistics 0,
    alter column text_content set statistics 0, alter column error_message set statistics 0;
alter table email_timeline alter column reply_text set statistics 0, alter column error set statistics 0;
alter table email_attachments alter column filename set statistics 0;
alter table dead_letters alter column error set statistics 0, alter column routing_key set statistics 0,
    alter column properties set statistics 0, alter column headers set statistics 0;
alter table suppressions alter column address set statistics 0, alter column note set statistics 0;
alter table webhook_events alter column body set statistics 0;
