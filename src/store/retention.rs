//! Forgetting persons and deleting records, in steps that take one small batch after the other.
//!
//! Each step is data: what is due, and what is done to it (`Step`). `decisions` says of every column of every table what
//! becomes of it.
//! Invariant: `now` is passed in; no statement asks for the time itself.
//! Invariant: what is done is told by the rows themselves (or noted in the transaction that did it), so that whoever is killed
//! in the middle leaves a batch done or not begun, and the next one goes on from there.
//! Invariant: a batch waits for nobody who sends mail: rows that somebody holds are left for later, and rows that can still
//! move are left alone.

/// What becomes of every column.
pub mod decisions;

/// The right to work, and one batch.
mod desk;

/// How far it is.
mod status;

/// Requests with their mails.
mod mails;

/// Dead letters.
mod letters;

/// What providers told.
mod receipts;

/// The suppression list and its history.
mod suppressed;

/// What operators did.
mod operators;

/// Files that no mail has any more.
mod files;

/// What is left behind by daemons.
mod leftovers;

use std::{sync::LazyLock, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

pub use self::{
    desk::{Batch, Desk},
    status::{DUE_MAX, Due, Progress},
};
use crate::{config::PipelineConfig, email::identity::first_row_id};

/// A delivery is judged to be too old a moment before its rows are looked for: they must still be there then, whichever clock is
/// ahead. More than a broker leaves a delivery unsettled.
const DELETE_MARGIN: TimeDelta = TimeDelta::hours(1);
/// Receipts outlive every repetition that `SNS_AGE_MAX` can let in.
const RECEIPTS_LEAST: TimeDelta = TimeDelta::days(15);
/// A daemon whose lease ran out this long ago comes back as another one.
const WORKERS_LEAST: TimeDelta = TimeDelta::days(7);
/// Clocks are not further apart: what was published later than this from now bears a wrong time.
const CLOCKS_APART: TimeDelta = TimeDelta::days(1);

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS`.
    pub anonymize_after: Duration,
    /// `EMAIL_AUDIT_RETENTION_DAYS`.
    pub audit_retention: Duration,
    /// Longest time between two steps of a mail that is still under way.
    pub life_max: Duration,
}

impl Periods {
    /// As configured.
    #[must_use]
    pub fn of(rules: &PipelineConfig) -> Self {
        let age = &rules.age_max;
        Self {
            anonymize_after: rules.anonymize_after,
            audit_retention: rules.audit_retention,
            life_max: rules.not_before_max + age.fast.max(age.standard).max(age.bulk),
        }
    }

    /// What is due at a time.
    #[must_use]
    pub fn at(&self, now: DateTime<Utc>) -> Moments {
        let before = |age: Duration| {
            let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
            now.checked_sub_signed(age).unwrap_or(DateTime::<Utc>::MIN_UTC)
        };
        let forget_before = before(self.anonymize_after);
        let delete_before = before(self.audit_retention) - DELETE_MARGIN;
        Moments { now, forget_before, delete_before, moved_before: before(self.life_max) - DELETE_MARGIN }
    }
}

/// The same as moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// The time that is taken for the present.
    pub now: DateTime<Utc>,
    /// Persons in what is older are forgotten.
    pub forget_before: DateTime<Utc>,
    /// Records that are older are deleted.
    pub delete_before: DateTime<Utc>,
    /// A mail under way that has not moved since does not move any more: nothing waits that long.
    pub moved_before: DateTime<Utc>,
}

impl Moments {
    fn of(&self, age: Age) -> DateTime<Utc> {
        match age {
            Age::Person => self.forget_before,
            Age::Record => self.delete_before,
            Age::Receipt => self.delete_before.min(self.now - RECEIPTS_LEAST),
            Age::Life => self.forget_before.min(self.moved_before),
            Age::Worker => self.now - WORKERS_LEAST,
            Age::Day => self.now - TimeDelta::days(1),
            Age::Over => self.now,
        }
    }

    /// The least id of mails that are kept.
    fn first_kept_row(&self) -> Uuid {
        first_row_id(self.delete_before)
    }

    /// The least id of mails that bear a wrong time.
    fn first_row_ahead(&self) -> Uuid {
        first_row_id(self.now + CLOCKS_APART)
    }
}

/// When something is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// After `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS`.
    Person,
    /// After `EMAIL_AUDIT_RETENTION_DAYS`, and a little.
    Record,
    /// The same, or later: as long as the sender may repeat it.
    Receipt,
    /// When nothing under way can need it, and not before a person is forgotten.
    Life,
    /// Days after a daemon's end.
    Worker,
    /// A day after it was last needed.
    Day,
    /// At the time that it bears.
    Over,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Takes the person away and leaves the figures.
    Anonymise,
    /// Takes the record away.
    Delete,
}

impl Action {
    /// In metrics and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymise => "anonymise",
            Self::Delete => "delete",
        }
    }
}

/// One kind of thing that retention does.
#[derive(Debug)]
pub struct Step {
    /// Its row in `retention_steps`.
    pub name: &'static str,
    /// What it does.
    pub action: Action,
    /// To the rows of this table, and to what hangs on them.
    pub table: &'static str,
    /// When.
    age: Age,
    /// Whether nothing can become due again before the place that it has reached.
    keeps_place: bool,
    work: Work,
    /// How many rows are due, no more than are asked for, and when the oldest of them was made: `$1` the moment of its age, `$2` how
    /// many, `$3` the place, `$4` now, `$5` the least id of mails that are kept, `$6` that of those that bear a wrong time.
    due: &'static str,
}

impl Step {
    /// Whether counting what is due reads all that is not.
    pub(crate) const fn is_wide_to_count(&self) -> bool {
        matches!(self.age, Age::Day)
    }
}

/// How a step works. Places are texts that the step itself reads.
#[derive(Debug)]
enum Work {
    /// One statement: `$1` the moment of its age, `$2` how many rows, `$3` the place to go on from (null: the beginning), `$4` now.
    /// Answers how many rows were changed, how many were looked at (fewer than `$2`: it was all), and the place.
    Rows(&'static str),
    /// Locks what is due, then does what is to be done to it: a statement sees what others have committed before it began, and who
    /// tells something of a mail holds its row. `pick`: `$1` to `$4` as above, `$5` when a mail must have moved to be under way,
    /// `$6` and `$7` the least ids; answers requests, mails, how many were looked at, and the place. Each act: `$1`
    /// the requests, `$2` the mails, `$3` now.
    Mails { pick: &'static str, acts: &'static [Act] },
}

/// What is done to the rows of one table.
#[derive(Debug)]
struct Act {
    table: &'static str,
    sql: &'static str,
}

/// All steps, in their order: nobody is deleted before being forgotten, and what recognises a request that comes again goes last.
#[must_use]
pub fn steps() -> &'static [&'static Step] {
    static ALL: LazyLock<Vec<&'static Step>> = LazyLock::new(|| {
        let all = [
            mails::FORGET.as_slice(),
            letters::FORGET.as_slice(),
            receipts::FORGET.as_slice(),
            suppressed::FORGET.as_slice(),
            operators::FORGET.as_slice(),
            leftovers::FORGET.as_slice(),
            files::DELETE.as_slice(),
            letters::DELETE.as_slice(),
            receipts::DELETE.as_slice(),
            suppressed::DELETE.as_slice(),
            operators::DELETE.as_slice(),
            leftovers::DELETE.as_slice(),
            mails::DELETE.as_slice(),
        ];
        all.into_iter().flatten().collect()
    });
    &ALL
}

/// Rows of a table whose numbers rise with their time: looked at from the place on, as far as they are due. Of two that were
/// made side by side the one with the lower number may be the younger: the place is before the first that is not due.
macro_rules! in_order {
    ($table:literal, $at:literal, $change:literal) => {
        concat!(
            "with looked as materialized (
                select id, ",
            $at,
            " as at from ",
            $table,
            " where id > coalesce($3::text, '0')::bigint order by id limit $2
             ), place as materialized (
                select coalesce((select min(id) - 1 from looked where at >= $1), (select max(id) from looked)) as id
             ), changed as (",
            $change,
            " and id in (select id from looked where id <= (select id from place)) returning 1
             )
             select (select count(*) from changed), (select count(*) from looked where id <= (select id from place)),
                (select id::text from place)"
        )
    };
}

/// How many of them are due.
macro_rules! due_in_order {
    ($table:literal, $at:literal, $which:literal) => {
        concat!(
            "select count(*), min(at) from (
                select ",
            $at,
            " as at, ",
            $which,
            " as is_due from ",
            $table,
            " where id > coalesce($3::text, '0')::bigint order by id limit $2) as looked
             where at < $1 and is_due"
        )
    };
}

/// Deletes rows of a table that is small, or has an index on their time.
macro_rules! delete_old {
    ($table:literal, $key:literal, $at:literal, $which:literal) => {
        concat!(
            "with due as materialized (
                select ",
            $key,
            " as key from ",
            $table,
            " where ",
            $at,
            " < $1 and ",
            $which,
            " order by ",
            $at,
            " limit $2 for update skip locked
             ), gone as (delete from ",
            $table,
            " where ",
            $key,
            " = any(array(select key from due)) returning 1)
             select (select count(*) from gone), (select count(*) from due), $3"
        )
    };
}

/// How many of them are due.
macro_rules! due_old {
    ($table:literal, $at:literal, $which:literal) => {
        concat!(
            "select count(*), min(at) from (
                select ",
            $at,
            " as at from ",
            $table,
            " where ",
            $at,
            " < $1 and ",
            $which,
            " order by ",
            $at,
            " limit $2) as found"
        )
    };
}

use {delete_old, due_in_order, due_old, in_order};

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn periods() -> Periods {
        Periods { anonymize_after: DAY * 90, audit_retention: DAY * 365, life_max: DAY * 31 }
    }

    #[test]
    fn a_delivery_is_too_old_before_what_recognises_it_is_deleted() {
        let now = Utc::now();
        let moments = periods().at(now);
        let too_old_since = now - TimeDelta::days(365);
        assert!(moments.of(Age::Record) < too_old_since, "still there when a delivery is judged by another clock");
        assert!(moments.first_kept_row() < first_row_id(too_old_since));
    }

    #[test]
    fn receipts_and_crashes_outlive_what_may_come_again() {
        let now = Utc::now();
        let short = Periods { anonymize_after: DAY, audit_retention: DAY * 2, life_max: DAY * 31 }.at(now);
        assert!(short.of(Age::Receipt) <= now - TimeDelta::days(14), "SNS_AGE_MAX may be 14 days");
        assert!(short.of(Age::Life) <= now - TimeDelta::days(31));
        assert!(periods().at(now).of(Age::Life) == now - TimeDelta::days(90));
    }

    #[test]
    fn each_step_has_a_name_of_its_own_and_mails_are_deleted_last() {
        let mut names: Vec<_> = steps().iter().map(|step| step.name).collect();
        assert!(names.last().is_some_and(|name| name.starts_with("mails")), "{names:?}");
        let first_deletion =
            steps().iter().position(|step| step.action == Action::Delete && step.table != "attachment_blobs");
        assert!(
            steps()[..first_deletion.expect("there are deletions")].iter().any(|step| step.table == "dead_letters")
        );
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
