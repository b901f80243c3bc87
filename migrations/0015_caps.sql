-- Caps: how many mails of a kind one person may get in a day or a week.

-- A mail has one place under its recipient's cap, however often it is claimed.
drop index rate_reservations_message;
create unique index rate_reservations_message on rate_reservations (message_id);

-- Until when a cap kept it waiting: its age counts from then on.
alter table email_messages add column postponed_until timestamptz;

-- Whether an entry of the suppression list stops a mail. Of marketing it is told the template's category: who unsubscribed from
-- one category still gets the others. Null: the mail is transactional.
create function stops_mail(reason text, category text, marketing text) returns boolean
language sql immutable parallel safe as $$
    select reason in ('hard_bounce', 'complaint')
        or marketing is not null and (reason <> 'unsubscribe' or lower(category) in ('', marketing))
$$;
