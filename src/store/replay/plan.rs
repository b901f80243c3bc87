//! What would become of letters if they were replayed now: looked at in sets, oldest first.
//!
//! Invariant: a plan reads no bodies, and holds no more of its letters than one set and the ids of their requests.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{LetterFacts, ReplayRules, Skip, Verdict, decide, facts};
use crate::{
    email::Reason,
    store::{Store, StoreError, dead::DeadFilter, within_limit},
};

/// Letters that are looked at together.
const SET: usize = 1000;
/// Groups that a plan tells apart, the largest first: a producer's keys could make any number of them.
const GROUPS_MAX: usize = 100;

/// Which letters are meant.
#[derive(Debug, Clone)]
pub enum Chosen {
    /// All that match and have not been dealt with, oldest first; the filter's states, page and limit say nothing.
    Filter(Box<DeadFilter>),
    /// These, in this order, whatever has become of them.
    Ids(Vec<Uuid>),
}

/// What would become of one letter.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The letter.
    pub letter: LetterFacts,
    /// What a replay does with it.
    pub verdict: Verdict,
    /// Whose words it would send. Nothing when that is for its arrival to find out.
    pub version: Option<i32>,
}

impl Planned {
    /// Why nothing is done. Nothing: it goes on its way.
    #[must_use]
    pub const fn skip(&self) -> Option<Skip> {
        match self.verdict {
            Verdict::Skip(skip) => Some(skip),
            // Only its letter does not say so yet.
            Verdict::Arrived => Some(Skip::Replayed),
            Verdict::Reopen { .. } | Verdict::Resume { .. } | Verdict::Again { .. } => None,
        }
    }
}

/// What would become of a plan's letters, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanCounts {
    /// All of them.
    pub letters: i32,
    /// Those that go on their way.
    pub open: i32,
    /// Those that do not.
    pub skipped: i32,
    /// What goes on its way, the largest groups first; at most a hundred.
    pub groups: Vec<PlanGroup>,
    /// Letters of the groups that are left out.
    pub in_other_groups: i32,
    /// Why the others do not, the most frequent first.
    pub skips: Vec<PlanSkip>,
}

/// Letters that go on their way alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanGroup {
    /// Why they are dead letters.
    pub reason: String,
    /// Which template.
    pub template_key: Option<String>,
    /// Whose words they would send. Nothing when that is for their arrival to find out.
    pub template_version: Option<i32>,
    /// How many.
    pub letters: i32,
}

/// Letters that are skipped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSkip {
    /// For programs.
    pub why: String,
    /// For people.
    pub words: String,
    /// How many.
    pub letters: i32,
}

/// Counts a plan's letters as they come.
#[derive(Debug, Default)]
struct Tally {
    groups: BTreeMap<(String, Option<String>, Option<i32>), i32>,
    skips: BTreeMap<Skip, i32>,
}

impl Tally {
    fn add(&mut self, planned: &Planned) {
        let letter = &planned.letter;
        match planned.skip() {
            Some(skip) => *self.skips.entry(skip).or_default() += 1,
            None => {
                let key = (letter.reason_name.clone(), letter.template_key.clone(), planned.version);
                *self.groups.entry(key).or_default() += 1;
            }
        }
    }

    fn counts(self) -> PlanCounts {
        let (open, skipped) = (self.groups.values().sum(), self.skips.values().sum());
        let mut groups: Vec<PlanGroup> = self
            .groups
            .into_iter()
            .map(|((reason, template_key, template_version), letters)| PlanGroup {
                reason,
                template_key,
                template_version,
                letters,
            })
            .collect();
        groups.sort_by_key(|group| -group.letters);
        let in_other_groups = groups.iter().skip(GROUPS_MAX).map(|group| group.letters).sum();
        groups.truncate(GROUPS_MAX);
        let mut skips: Vec<PlanSkip> = self
            .skips
            .into_iter()
            .map(|(skip, letters)| PlanSkip { why: skip.name().to_owned(), words: skip.to_string(), letters })
            .collect();
        skips.sort_by_key(|skip| -skip.letters);
        PlanCounts { letters: open + skipped, open, skipped, groups, in_other_groups, skips }
    }
}

/// Goes through the letters that are meant.
pub(super) struct Planner<'a> {
    chosen: &'a Chosen,
    rules: &'a ReplayRules,
    now: DateTime<Utc>,
    /// Where the next set begins.
    taken: usize,
    after: Option<(DateTime<Utc>, Uuid)>,
    /// Requests that go on their way by a letter that was looked at.
    on_their_way: HashSet<Uuid>,
    tally: Tally,
}

impl<'a> Planner<'a> {
    pub(super) fn new(chosen: &'a Chosen, rules: &'a ReplayRules, now: DateTime<Utc>) -> Self {
        Self { chosen, rules, now, taken: 0, after: None, on_their_way: HashSet::new(), tally: Tally::default() }
    }

    /// The next set; nothing: that were all.
    pub(super) async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<Vec<Planned>>, StoreError> {
        let ids = self.next_ids(&mut *connection).await?;
        if ids.is_empty() {
            return Ok(None);
        }
        let facts = facts(connection, &ids, &self.rules.marketing).await?;
        let mut facts: HashMap<Uuid, LetterFacts> = facts.into_iter().map(|letter| (letter.id, letter)).collect();
        let set: Vec<Planned> = ids.iter().filter_map(|id| facts.remove(id)).map(|letter| self.plan(letter)).collect();
        set.iter().for_each(|planned| self.tally.add(planned));
        Ok(Some(set))
    }

    pub(super) fn counts(self) -> PlanCounts {
        self.tally.counts()
    }

    fn plan(&mut self, letter: LetterFacts) -> Planned {
        let mut verdict = decide(&letter, self.rules.audit_retention, self.now);
        let is_going = matches!(verdict, Verdict::Reopen { .. } | Verdict::Resume { .. } | Verdict::Again { .. });
        // What cannot be read makes no rows, which another letter of its request would find.
        if let Some(request) = letter.request_id.filter(|_| is_going && letter.reason != Some(Reason::Malformed))
            && !self.on_their_way.insert(request)
            && matches!(verdict, Verdict::Resume { .. })
        {
            verdict = Verdict::Skip(Skip::SameRequest);
        }
        let version = match verdict {
            Verdict::Reopen { .. } => self.rules.version_for(&letter),
            // What was fixed or cleared when it was begun stays so; without rows it is the message's own business.
            Verdict::Again { .. } | Verdict::Resume { .. } | Verdict::Arrived | Verdict::Skip(_) => None,
        };
        Planned { letter, verdict, version }
    }

    async fn next_ids(&mut self, connection: &mut PgConnection) -> Result<Vec<Uuid>, StoreError> {
        let filter = match self.chosen {
            Chosen::Ids(ids) => {
                let set: Vec<Uuid> = ids.iter().skip(self.taken).take(SET).copied().collect();
                self.taken += set.len();
                return Ok(set);
            }
            Chosen::Filter(filter) => filter,
        };
        let rows = sqlx::query!(
            "select d.id, d.archived_at from dead_letters d
             where d.state in ('waiting', 'replaying')
                and (d.archived_at, d.id) > (coalesce($7, '-infinity'::timestamptz), coalesce($8, $9::uuid))
                -- what arrives while the plan is made is not of it
                and d.archived_at <= $10
                and ($1::text is null or d.reason = $1) and ($2::text is null or d.template_key = $2)
                and ($3::text is null or d.source = $3)
                and ($4::timestamptz is null or coalesce(d.last_at, d.archived_at) >= $4)
                and ($5::timestamptz is null or coalesce(d.last_at, d.archived_at) < $5)
                and ($6::bytea is null or exists (
                    select 1 from email_messages m where m.request_id = d.request_id and m.recipient_hash = $6
                        and (d.state <> 'waiting' or m.status = 'failed' or m.held)))
             order by d.archived_at, d.id limit $11",
            filter.reason,
            filter.template_key,
            filter.source,
            filter.since,
            filter.until,
            filter.recipient_hash.as_ref().map(<[u8; 32]>::as_slice),
            self.after.map(|(at, _)| at),
            self.after.map(|(_, id)| id),
            Uuid::nil(),
            self.now,
            i64::try_from(SET).unwrap_or(i64::MAX)
        )
        .fetch_all(connection)
        .await?;
        self.after = rows.last().map(|row| (row.archived_at, row.id)).or(self.after);
        Ok(rows.into_iter().map(|row| row.id).collect())
    }
}

impl ReplayRules {
    /// Whose words a reopened letter would send, but for a version that the producer pinned.
    fn version_for(&self, letter: &LetterFacts) -> Option<i32> {
        let active = letter.template_key.as_ref().and_then(|key| self.active.get(key)).copied();
        let request = letter.request.as_ref();
        let fixed = request.and_then(|request| request.template_version);
        if self.keep_version || request.is_some_and(|request| request.is_retransmission) {
            fixed.or(active)
        } else {
            active
        }
    }
}

impl Store {
    /// What would become of these letters if they were replayed now, each told in its order, and all of them in numbers. Changes
    /// nothing.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn plan(
        &self,
        chosen: &Chosen,
        rules: &ReplayRules,
        mut each: impl FnMut(Planned),
    ) -> Result<PlanCounts, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let now = within_limit(database_now(&mut connection)).await?;
        let mut planner = Planner::new(chosen, rules, now);
        while let Some(set) = within_limit(planner.next(&mut connection)).await? {
            set.into_iter().for_each(&mut each);
        }
        Ok(planner.counts())
    }
}

/// The time by the clock that letters are archived by.
pub(super) async fn database_now(connection: &mut PgConnection) -> Result<DateTime<Utc>, StoreError> {
    Ok(sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(connection).await?)
}
