//! Files that no mail has any more: their bytes go a day after they were last needed, and an object's with them.

use super::{Action, Age, Step, Work};

pub(super) static DELETE: [Step; 1] = [Step {
    name: "attachment_blobs.delete",
    action: Action::Delete,
    table: "attachment_blobs",
    age: Age::Day,
    keeps_place: false,
    // In the order of their hashes, so that a pass looks at each once, however many are still needed. Who needs one again, or
    // writes a mail that refers to it, has its row: it is looked at next time.
    work: Work::Rows(
        "with looked as materialized (
            select sha256, used_at from attachment_blobs
            where sha256 > decode(coalesce($3, ''), 'hex') order by sha256 limit $2
         ), unused as materialized (
            select b.sha256 from attachment_blobs b
            where b.sha256 in (select sha256 from looked where used_at < $1) and b.used_at < $1
                and not exists (select from email_attachments a where a.sha256 = b.sha256)
            for update of b skip locked
         ), gone as (
            delete from attachment_blobs b using unused u where b.sha256 = u.sha256 returning b.location
         ), due as (
            insert into attachment_objects_due (location, due_at)
            select location, $4 from gone where location is not null
            on conflict (location) do update set due_at = excluded.due_at
         )
         select (select count(*) from gone), (select count(*) from looked),
            (select encode(sha256, 'hex') from looked order by sha256 desc limit 1)",
    ),
    due: "select count(*), min(used_at) from (
            select used_at from attachment_blobs b
            where used_at < $1 and not exists (select from email_attachments a where a.sha256 = b.sha256) limit $2) as found",
}];
