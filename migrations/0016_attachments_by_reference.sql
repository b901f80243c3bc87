-- When somebody last needed the bytes: a mail that is about to refer to them is not there yet, and must find them.
alter table attachment_blobs add column used_at timestamptz not null default now();

-- Objects of the attachment store that no row speaks for: one that is being written (due a day later, if its writer never
-- came back), or whose row is gone. What is due is deleted; so no crash leaves bytes behind that nobody knows of.
create table attachment_objects_due (
    location text primary key,
    due_at timestamptz not null
);
create index attachment_objects_due_at on attachment_objects_due (due_at);
