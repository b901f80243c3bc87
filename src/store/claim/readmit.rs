//! Requests that are known: a redelivery, a retry copy, another recipient. Decided under a lock, row by row.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Admission, AttachmentRow, Claim, ClaimRequest, Initial, Standing, Words,
    over_cap::{self, Ruling},
    status_of,
};
use crate::{
    email::{PayloadHash, Reason, Status},
    store::{
        StoreError,
        caps::{self, Wanted},
        crashes,
        held::{HeldClaims, OwnClaim},
        standing::{self, Finding, RowFacts},
    },
};

/// Looks at a known request under a lock. Nothing: there is no such request.
pub(super) async fn readmit(
    tx: &mut PgConnection,
    request: &ClaimRequest,
    worker_id: Uuid,
    held: &HeldClaims,
) -> Result<Option<Admission>, StoreError> {
    let facts = &request.facts;
    let Some(known) = sqlx::query!(
        "select payload_hash, generation, copy_no, expires_at, coalesce(expires_at <= now(), false) as \"expired!\"
         from email_requests where id = $1 for update",
        facts.id
    )
    .fetch_optional(&mut *tx)
    .await?
    else {
        return Ok(None);
    };
    if known.payload_hash != facts.payload_hash.0 {
        let stored = <[u8; 32]>::try_from(known.payload_hash).unwrap_or_default();
        return Ok(Some(Admission::Conflict { stored: PayloadHash(stored) }));
    }
    // Copies count anew in each generation. A higher generation than the row's is no replay of ours, which raises the row
    // before it publishes: whatever made it (a producer's own header, a database that was put back), its rows decide.
    if (facts.generation, facts.copy_no) < (known.generation, known.copy_no) {
        return Ok(Some(Admission::OldCopy));
    }
    let asked: Vec<Vec<u8>> = request.recipients.iter().map(|r| r.recipient_hash.to_vec()).collect();
    let rows = sqlx::query!(
        r#"select m.id, m.recipient_hash, m.status, m.held, m.token, m.worker_id, m.message_id, m.attempts, m.deferrals, m.reason,
            m.postponed_until, m.error_message, m.subject, m.html_content, m.text_content, m.settlement = 'pending' as "settlement_pending!",
            coalesce(extract(epoch from m.due_at - now()), 0)::float8 as "due_in!",
            coalesce(w.lease_until > now(), false) as "lease_live!", s.reason as "suppressed?"
           from email_messages m left join email_workers w on w.id = m.worker_id
           left join lateral (select s.reason from suppressions s where s.address_hash = m.recipient_hash
                and stops_mail(s.reason, s.category, $3) and (s.expires_at is null or s.expires_at > now())
                order by s.reason, s.category limit 1) as s on true
           where m.request_id = $1 and m.recipient_hash = any($2) order by m.id for update of m"#,
        facts.id,
        &asked,
        request.marketing.as_deref()
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut standings = Vec::with_capacity(request.recipients.len());
    // Counted once a delivery, however many of its mails were on their way.
    let mut crashed = None;
    // Ended here without having gone out.
    let mut unsent = Vec::new();
    for recipient in &request.recipients {
        let Some(row) = rows.iter().find(|row| row.recipient_hash == recipient.recipient_hash) else {
            // The first claim fixed who gets it: somebody added to the template since is not of this request.
            standings.push(Standing::Settled(Status::Expired));
            continue;
        };
        let wanted = match &recipient.initial {
            Initial::Claim(token) => Some(*token),
            Initial::Wait | Initial::NotBefore(_) | Initial::Fail(..) | Initial::Expired | Initial::EndedElsewhere => {
                None
            }
        };
        let status = status_of(&row.status)?;
        let own_token = wanted.is_some() && row.token == wanted;
        // Our own lease proves nothing about a claim that none of our workers carries.
        let own = row.token.filter(|_| row.worker_id == Some(worker_id)).map(|token| held.state(token));
        let row_facts = RowFacts {
            status,
            due_in: Duration::try_from_secs_f64(row.due_in).unwrap_or_default(),
            lease_live: row.lease_live && own != Some(OwnClaim::Lost),
            given_up: own == Some(OwnClaim::GivenUp),
            own_token,
            settlement_pending: row.settlement_pending,
            held: row.held,
            expired: known.expired,
        };
        let ended_elsewhere = recipient.initial == Initial::EndedElsewhere;
        let finding = match standing::decide(&row_facts, request.unknown) {
            finding @ (Finding::Settled | Finding::Owed) => finding,
            // The row is behind, and the journal will bring it up to date: until then nothing is decided about it here.
            _ if ended_elsewhere => Finding::Busy,
            finding => finding,
        };
        let is_lost = status == Status::Sending && !row_facts.lease_live && !row_facts.given_up && !row_facts.own_token;
        let lost_worker = is_lost && !ended_elsewhere;
        if lost_worker && crashed.is_none() {
            crashed = Some(crashes::lost_lease(tx, &request.crash_key, request.counts_crashes).await?);
        }
        let is_poison = lost_worker && crashed.is_some_and(|c| c.alone >= request.crashes_max);
        let words = match (&row.subject, &row.html_content, &row.text_content) {
            (Some(subject), Some(html), Some(text)) => {
                Some(Words { subject: subject.clone(), html: html.clone(), text: text.clone() })
            }
            _ => None,
        };
        let claim = |token| Claim {
            id: row.id,
            token,
            message_id: row.message_id.clone(),
            attempts: row.attempts,
            deferrals: row.deferrals,
            crashes: crashed.map_or(0, |c| c.crashes),
            postponed_until: row.postponed_until,
            words: words.clone(),
        };
        let standing = match (finding, &recipient.initial) {
            (Finding::Claimable | Finding::NowUnknown(_), _) if is_poison => {
                fail_row(tx, row.id, Reason::Poison, DEADLY).await?;
                Standing::Failed { reason: Reason::Poison, error: DEADLY.to_owned(), attempts: row.attempts }
            }
            // Nothing was rendered, neither now nor earlier: it fails as it would have when new.
            (Finding::Claimable, Initial::Fail(reason, error)) if words.is_none() => {
                fail_row(tx, row.id, *reason, error).await?;
                unsent.push(row.id);
                Standing::Failed { reason: *reason, error: error.clone(), attempts: row.attempts }
            }
            (Finding::Claimable, _) if row.suppressed.is_some() => {
                suppress_row(tx, row.id, row.suppressed.as_deref().unwrap_or_default()).await?;
                if !lost_worker {
                    unsent.push(row.id);
                }
                Standing::Stopped(Status::Suppressed)
            }
            // The daemon's clock is ahead of the database's.
            (Finding::Claimable, Initial::Expired) => {
                expire_row(tx, row.id).await?;
                if !lost_worker {
                    unsent.push(row.id);
                }
                Standing::Stopped(Status::Expired)
            }
            // And here it is behind.
            (Finding::Claimable, Initial::NotBefore(_)) => Standing::NotDue(CLOCK_SKEW, row.attempts, row.deferrals),
            (Finding::OwnClaim, Initial::Claim(token)) => Standing::Claimed(claim(*token)),
            (Finding::Claimable, Initial::Claim(token)) => {
                let ruling = match &request.cap {
                    // What may have gone out already goes again under the place that it has.
                    Some(cap) if status == Status::Queued || row_facts.given_up => {
                        let wanted = Wanted { message_id: row.id, address_hash: &recipient.recipient_hash, cap };
                        over_cap::judge(tx, &wanted, known.expires_at, row.error_message.as_deref()).await?
                    }
                    Some(_) | None => Ruling::Free,
                };
                match ruling {
                    Ruling::Free => {
                        let fresh = if words.is_none() { recipient.words.as_deref() } else { None };
                        take_row(tx, row.id, *token, worker_id, fresh, facts.template_version, lost_worker).await?;
                        if fresh.is_some() {
                            fix_version(tx, facts.id, facts.template_version).await?;
                        }
                        Standing::Claimed(claim(*token))
                    }
                    Ruling::Dropped => Standing::Stopped(Status::RateLimited),
                    Ruling::Waits { due_in, is_deferred } => {
                        Standing::Postponed { due_in, is_deferred, attempts: row.attempts, deferrals: row.deferrals }
                    }
                }
            }
            (Finding::Claimable | Finding::OwnClaim, _) => Standing::Ready,
            (Finding::NotDue(due_in), _) => Standing::NotDue(due_in, row.attempts, row.deferrals),
            (Finding::Busy, _) => Standing::Busy(row.attempts, row.deferrals),
            (Finding::Settled, _) => Standing::Settled(status),
            (Finding::Owed, _) => Standing::Failed {
                reason: row.reason.as_deref().and_then(Reason::from_name).unwrap_or(Reason::OutcomeUnknown),
                error: row.error_message.clone().unwrap_or_default(),
                attempts: row.attempts,
            },
            (Finding::NowUnknown(wait), _) => {
                mark_unknown(tx, row.id, Some(wait)).await?;
                Standing::NotDue(wait, row.attempts, row.deferrals)
            }
            (Finding::NowHeld, _) => {
                mark_unknown(tx, row.id, None).await?;
                Standing::Failed {
                    reason: Reason::OutcomeUnknown,
                    error: LOST_WORKER.to_owned(),
                    attempts: row.attempts,
                }
            }
            (Finding::NowExpired, _) => {
                expire_row(tx, row.id).await?;
                unsent.push(row.id);
                Standing::Stopped(Status::Expired)
            }
        };
        standings.push(standing);
    }
    if request.cap.is_some() && !unsent.is_empty() {
        caps::give_back(tx, &unsent).await?;
    }
    if !request.attachments.is_empty() {
        attach(tx, &standings, &request.attachments).await?;
    }
    Ok(Some(Admission::Known(standings)))
}

/// How soon a mail is looked at again whose time has come by the database's clock only.
const CLOCK_SKEW: Duration = Duration::from_secs(1);
const DEADLY: &str = "the daemon died each time it sent this mail and did nothing else; the relay may have accepted it";
const LOST_WORKER: &str = "the daemon that was sending it is gone; the relay may or may not have accepted it";

async fn take_row(
    tx: &mut PgConnection,
    id: Uuid,
    token: Uuid,
    worker_id: Uuid,
    words: Option<&Words>,
    template_version: Option<i32>,
    lost_worker: bool,
) -> Result<(), StoreError> {
    if lost_worker {
        timeline(tx, id, "unknown", LOST_WORKER).await?;
    }
    sqlx::query!(
        "update email_messages set status = 'sending', token = $2, worker_id = $3, due_at = null, settlement = 'none',
            held = false, reason = null, error_message = null, updated_at = now() where id = $1",
        id,
        token,
        worker_id
    )
    .execute(&mut *tx)
    .await?;
    if let Some(words) = words {
        sqlx::query!(
            "update email_messages set subject = $2, html_content = $3, text_content = $4, template_version = $5
             where id = $1",
            id,
            words.subject,
            words.html,
            words.text,
            template_version
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// The files of mails that are claimed and have none yet: their bytes were not at hand when the rows were written.
async fn attach(tx: &mut PgConnection, standings: &[Standing], files: &[AttachmentRow]) -> Result<(), StoreError> {
    let claimed: Vec<Uuid> =
        standings.iter().filter_map(|s| if let Standing::Claimed(claim) = s { Some(claim.id) } else { None }).collect();
    if claimed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = files.iter().map(|file| file.file_name.as_str()).collect();
    let types: Vec<&str> = files.iter().map(|file| file.content_type.as_str()).collect();
    let ids: Vec<Option<&str>> = files.iter().map(|file| file.content_id.as_deref()).collect();
    let sizes: Vec<i32> = files.iter().map(|file| file.size_bytes).collect();
    let hashes: Vec<&[u8]> = files.iter().map(|file| file.sha256.as_slice()).collect();
    sqlx::query!(
        "with attached as (
            insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
            select m.id, a.filename, a.content_type, a.content_id, a.size_bytes, a.sha256, a.ordinal
            from unnest($1::uuid[]) as m (id), unnest($2::text[], $3::text[], $4::text[], $5::int[], $6::bytea[])
                with ordinality as a (filename, content_type, content_id, size_bytes, sha256, ordinal)
            where not exists (select from email_attachments known where known.message_id = m.id)
            returning message_id)
         update email_messages m set attachments_count = $7 where m.id in (select message_id from attached)",
        &claimed,
        &names as _,
        &types as _,
        &ids as _,
        &sizes,
        &hashes as _,
        i32::try_from(files.len()).unwrap_or(i32::MAX)
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The first claim after a replay fixes the version anew, for every later try and every other recipient.
async fn fix_version(tx: &mut PgConnection, request_id: Uuid, version: Option<i32>) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_requests set template_version = $2 where id = $1 and template_version is null",
        request_id,
        version
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}

async fn fail_row(tx: &mut PgConnection, id: Uuid, reason: Reason, error: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_messages set status = 'failed', settlement = 'pending', reason = $2, error_message = $3,
            due_at = null, updated_at = now() where id = $1",
        id,
        reason.name(),
        error
    )
    .execute(&mut *tx)
    .await?;
    timeline(tx, id, "failed", error).await
}

/// Waits for feedback (`wait`), or is left to an operator.
async fn mark_unknown(tx: &mut PgConnection, id: Uuid, wait: Option<Duration>) -> Result<(), StoreError> {
    sqlx::query!(
        // The token stays: should its worker be alive after all, what it has to tell is known by it.
        "update email_messages set status = 'unknown', held = $2::float8 is null, settlement = 'pending',
            due_at = now() + make_interval(secs => $2::float8), reason = $3, error_message = $4, updated_at = now()
         where id = $1",
        id,
        wait.map(|w| w.as_secs_f64()),
        Reason::OutcomeUnknown.name(),
        LOST_WORKER
    )
    .execute(&mut *tx)
    .await?;
    timeline(tx, id, "unknown", LOST_WORKER).await
}

async fn suppress_row(tx: &mut PgConnection, id: Uuid, reason: &str) -> Result<(), StoreError> {
    let error = format!("on the suppression list: {reason}");
    sqlx::query!(
        "update email_messages set status = 'suppressed', due_at = null, settlement = 'none', error_message = $2,
            updated_at = now() where id = $1",
        id,
        error
    )
    .execute(&mut *tx)
    .await?;
    timeline(tx, id, "suppressed", &error).await
}

async fn expire_row(tx: &mut PgConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_messages set status = 'expired', due_at = null, settlement = 'none', updated_at = now()
         where id = $1",
        id
    )
    .execute(&mut *tx)
    .await?;
    timeline(tx, id, "expired", "past expires_at").await
}

pub(super) async fn timeline(tx: &mut PgConnection, id: Uuid, kind: &str, error: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into email_timeline (message_id, kind, attempt, error)
         select id, $2, attempts, $3 from email_messages where id = $1",
        id,
        kind,
        error
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}
