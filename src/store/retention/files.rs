//! Files that no mail has any more: their bytes go a day after they were last asked for.

use super::{Action, Age, Step, Work};

pub(super) static DELETE: [Step; 1] = [Step {
    name: "attachment_blobs.delete",
    action: Action::Delete,
    table: "attachment_blobs",
    age: Age::Day,
    keeps_place: false,
    // In the order of their hashes, so that a pass looks at each once, however many are still needed.
    work: Work::Rows(
        "with looked as materialized (
            select sha256, created_at from attachment_blobs
            where sha256 > decode(coalesce($3::text, ''), 'hex') order by sha256 limit $2
         ), gone as (
            delete from attachment_blobs b using looked l
            where b.sha256 = l.sha256 and l.created_at < $1 and b.location is null
                and not exists (select from email_attachments a where a.sha256 = b.sha256)
            returning 1
         )
         select (select count(*) from gone), (select count(*) from looked),
            (select encode(sha256, 'hex') from looked order by sha256 desc limit 1)",
    ),
    due: "select count(*), min(created_at) from (
            select created_at from attachment_blobs b
            where created_at < $1 and location is null
                and not exists (select from email_attachments a where a.sha256 = b.sha256) limit $2) as found",
}];
