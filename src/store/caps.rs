//! Places under the caps: who had how many mails of a kind in which window.
//!
//! Invariant: a place is taken in the transaction that claims its mail, and a window has no more than the cap says: two that take
//! the same one at the same moment wait for each other, and one of them gets none.
//! Invariant: a mail has one place at most, however often it is claimed. It is given back when the mail has failed for good, and
//! only if it cannot have gone out.
//! Invariant: places are taken in the order of their keys, after everything else that a transaction waits for, so that two
//! daemons cannot lock each other out.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use crate::email::Cap;

/// A mail that wants a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Its row, which need not be there yet.
    pub(super) message_id: Uuid,
    /// Keyed hash of the recipient's address.
    pub(super) address_hash: &'a [u8; 32],
    pub(super) cap: &'a Cap,
}

/// Those who have the places that a mail wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// How many.
    pub(super) count: i64,
    /// How long ago the last of them took its place that may still give it back; nothing: all of them are over.
    pub(super) open_for: Option<Duration>,
    /// The end of the window.
    pub(super) ends_at: DateTime<Utc>,
    /// By the same clock.
    pub(super) now: DateTime<Utc>,
}

/// Takes places for those that can have one; answers their mails. One that has its place already is not among them.
pub(super) async fn take(connection: &mut PgConnection, wanted: &[Wanted<'_>]) -> Result<Vec<Uuid>, StoreError> {
    let mut c = Columns::default();
    for one in wanted {
        c.push(one);
    }
    Ok(sqlx::query_scalar!(
        r#"insert into rate_reservations (address_hash, kind, window_start, slot, message_id)
           select w.address_hash, w.kind, w.window_start, free.slot, w.message_id
           from (
                select i.*, row_number() over (partition by i.address_hash, i.kind order by i.n) as turn
                from (
                    select n, ($1::uuid[])[n] as message_id, ($2::bytea[])[n] as address_hash, ($3::text[])[n] as kind,
                        ($4::int[])[n] as most, (
                            select max(b.at) from unnest($5::text[], $6::timestamptz[]) as b (kind, at)
                            where b.kind = ($3::text[])[n] and b.at <= now()) as window_start
                    from generate_subscripts($1::uuid[], 1) as n
                    offset 0) as i
                where i.window_start is not null) as w
           cross join lateral (
                select s.slot from generate_series(1, w.most) as s (slot)
                where not exists (
                    select from rate_reservations r where r.address_hash = w.address_hash and r.kind = w.kind
                        and r.window_start = w.window_start and r.slot = s.slot)
                order by s.slot offset w.turn - 1 limit 1) as free
           -- more than the cap were taken while it was a higher one
           where w.turn + (
                select count(*) from rate_reservations r where r.address_hash = w.address_hash and r.kind = w.kind
                    and r.window_start = w.window_start) <= w.most
           order by w.address_hash, w.kind, free.slot
           on conflict do nothing
           returning message_id"#,
        &c.message_id,
        &c.address_hash as _,
        &c.kind as _,
        &c.most,
        &c.bound_kind as _,
        &c.bound_at
    )
    .fetch_all(connection)
    .await?)
}

/// Whether a mail has its place.
pub(super) async fn has_place(connection: &mut PgConnection, message_id: Uuid) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"select exists (select from rate_reservations where message_id = $1) as "found!""#,
        message_id
    );
    Ok(found.fetch_one(connection).await?)
}

/// Who has the places that a mail wants. Nothing: this daemon's clock is wrong by more than a window.
pub(super) async fn look(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<Option<Taken>, StoreError> {
    let found = sqlx::query!(
        r#"select clock_timestamp() as "now!", w.ends_at, t.count as "count!",
            extract(epoch from clock_timestamp() - t.open_since)::float8 as open_for
           from (
                select max(at) filter (where at <= now()) as starts_at, min(at) filter (where at > now()) as ends_at
                from unnest($3::timestamptz[]) as b (at)) as w,
            lateral (
                select count(*) as count, max(r.created_at) filter (where m.status in ('queued', 'sending', 'unknown'))
                    as open_since
                from rate_reservations r left join email_messages m on m.id = r.message_id
                where r.address_hash = $1 and r.kind = $2 and r.window_start = w.starts_at) as t"#,
        wanted.address_hash.as_slice(),
        wanted.cap.kind.name(),
        &wanted.cap.starts
    )
    .fetch_one(connection)
    .await?;
    let open_for = found.open_for.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default());
    Ok(found.ends_at.map(|ends_at| Taken { count: found.count, open_for, ends_at, now: found.now }))
}

/// Gives back what these mails took in this very transaction.
pub(super) async fn undo(connection: &mut PgConnection, message_ids: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query!("delete from rate_reservations where message_id = any($1)", message_ids).execute(connection).await?;
    Ok(())
}

/// Gives back the places of those of these mails that ended without having gone out. One of which a try ended `unknown` may have
/// gone out, and keeps its place.
pub(super) async fn give_back(connection: &mut PgConnection, message_ids: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query!(
        "delete from rate_reservations r using email_messages m
         where r.message_id = any($1) and m.id = r.message_id and m.status in ('failed', 'expired', 'suppressed')
            and not exists (select from email_timeline t where t.message_id = r.message_id and t.kind = 'unknown')",
        message_ids
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(Default)]
struct Columns<'a> {
    message_id: Vec<Uuid>,
    address_hash: Vec<&'a [u8]>,
    kind: Vec<&'static str>,
    most: Vec<i32>,
    bound_kind: Vec<&'static str>,
    bound_at: Vec<DateTime<Utc>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, wanted: &Wanted<'a>) {
        let kind = wanted.cap.kind.name();
        // The first of its kind brings the windows: in the same batch they are the same.
        if !self.bound_kind.contains(&kind) {
            self.bound_kind.extend(wanted.cap.starts.map(|_| kind));
            self.bound_at.extend(wanted.cap.starts);
        }
        self.message_id.push(wanted.message_id);
        self.address_hash.push(wanted.address_hash);
        self.kind.push(kind);
        self.most.push(wanted.cap.most);
    }
}
