//! Saving, activating, rolling back and deactivating: each one transaction, with the history's line, the change log's line and
//! the word to all daemons in it.
//!
//! Invariant: changes of one key wait for each other, and each sees what the one before it left.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::store::{
    Store, StoreError,
    changes::{self, Change},
    told::{self, Topic},
    whole::Whole,
    within_limit,
};

/// What the original's columns show of the active version.
#[derive(Debug, Clone)]
pub struct TemplateHead {
    /// Which template.
    pub key: String,
    /// Subject's source.
    pub subject: String,
    /// HTML part's source.
    pub html: String,
    /// Text part's source.
    pub text: String,
    /// Must be there.
    pub required_variables: Vec<String>,
    /// Whether it takes attachments at all.
    pub attachments_allowed: bool,
    /// billing, incident ...
    pub category: String,
}

/// Who changes something, and what they know of.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    /// `operator:<name>`; `sync` is a daemon that starts.
    pub by: &'a str,
    /// What they think is active.
    pub expects: Expects,
    /// What stands against the version and was accepted, for the change log. No values.
    pub accepted: &'a [String],
}

/// What an editor thinks is active. Somebody else may have been faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    /// They do not say.
    Anything,
    /// This version, or one before it.
    NoneAfter(i32),
    /// Exactly this one, or none.
    Exactly(Option<i32>),
}

impl Expects {
    fn is_met(self, active: Option<i32>) -> bool {
        match self {
            Self::Anything => true,
            Self::NoneAfter(version) => active.is_none_or(|active| active <= version),
            Self::Exactly(expected) => active == expected,
        }
    }
}

/// Which versions become active when they are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// None: drafts.
    Never,
    /// The first of a key.
    OfFirst,
    /// This one, whatever there is.
    Always,
}

/// What saving a version did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The key was new: this is its first version, and active.
    First,
    /// A version with this content is there already, and stands where it shall.
    Same(i32),
    /// A new version that is not active.
    Draft(i32),
    /// A new version, active from now on.
    Activated(i32),
    /// A version with this content was there already; now it is active.
    Reactivated(i32),
}

/// Another version is active now, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switched {
    /// What was active before.
    pub before: Option<i32>,
    /// What is active now.
    pub now: Option<i32>,
}

/// Where a roll back leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Back {
    /// The history's line that is returned to.
    line: i64,
    back_to: Option<i64>,
    /// The version that was active then.
    pub version: i32,
}

/// Why nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody else was faster.
    #[error("{}, and you began from {}: look at it, then begin again", active_words(*.active), expected_words(*.expected))]
    Conflict {
        /// What is active now.
        active: Option<i32>,
        /// What the editor thought.
        expected: Option<i32>,
    },
    /// There is no such version.
    #[error("there is no version {0} of this template")]
    UnknownVersion(i32),
    /// There is nothing to roll back to.
    #[error("nothing was active before")]
    NothingBefore,
    /// There is nothing to deactivate.
    #[error("no version of this template is active")]
    NotActive,
}

fn active_words(active: Option<i32>) -> String {
    active.map_or_else(|| "no version is active now".to_owned(), |active| format!("version {active} is active now"))
}

fn expected_words(expected: Option<i32>) -> String {
    expected.map_or_else(|| "none".to_owned(), |expected| format!("version {expected}"))
}

impl Store {
    /// Saves a version, unless one with this content is there already.
    ///
    /// # Errors
    /// When the database is away; inside, when the edit does not fit what is there.
    pub async fn add_template(
        &self,
        head: &TemplateHead,
        source: &Value,
        checksum: &[u8; 32],
        activation: Activation,
        edit: &Edit<'_>,
    ) -> Result<Result<Added, Refused>, StoreError> {
        self.change(&head.key, edit, async |tx, active| {
            let newest = sqlx::query_scalar!(
                "select max(version) from email_template_versions where template_key = $1",
                head.key
            )
            .fetch_one(&mut *tx)
            .await?;
            let same = sqlx::query_scalar!(
                "select max(version) from email_template_versions where template_key = $1 and checksum = $2",
                head.key,
                checksum.as_slice()
            )
            .fetch_one(&mut *tx)
            .await?;
            let activates = match activation {
                Activation::Never => false,
                Activation::OfFirst => newest.is_none(),
                Activation::Always => true,
            };
            let added = match same {
                Some(version) if !activates || active == Some(version) => return Ok(Ok(Added::Same(version))),
                Some(version) => Added::Reactivated(version),
                None => {
                    let version = newest.unwrap_or(0) + 1;
                    insert_version(tx, head, version, source, checksum, edit.by).await?;
                    match (activates, newest) {
                        (false, _) => Added::Draft(version),
                        (true, None) => Added::First,
                        (true, Some(_)) => Added::Activated(version),
                    }
                }
            };
            match added {
                Added::First => switch(tx, head, 1, (active, None), edit, "template.activate").await?,
                Added::Activated(version) | Added::Reactivated(version) => {
                    switch(tx, head, version, (active, None), edit, "template.activate").await?;
                }
                Added::Draft(_) | Added::Same(_) => {}
            }
            Ok(Ok(added))
        })
        .await
    }

    /// Makes a version active, whatever was. One that is active already stays so, and nothing is noted.
    ///
    /// # Errors
    /// When the database is away; inside, when there is no such version, or the edit does not fit what is there.
    pub async fn activate_template(
        &self,
        head: &TemplateHead,
        version: i32,
        edit: &Edit<'_>,
    ) -> Result<Result<Switched, Refused>, StoreError> {
        self.change(&head.key, edit, async |tx, active| {
            let is_there = sqlx::query_scalar!(
                r#"select exists (select 1 from email_template_versions where template_key = $1 and version = $2) as "is_there!""#,
                head.key,
                version
            )
            .fetch_one(&mut *tx)
            .await?;
            if !is_there {
                return Ok(Err(Refused::UnknownVersion(version)));
            }
            if active != Some(version) {
                switch(tx, head, version, (active, None), edit, "template.activate").await?;
            }
            Ok(Ok(Switched { before: active, now: Some(version) }))
        })
        .await
    }

    /// Where a roll back would lead; nothing: no other version was active before.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_before(&self, key: &str) -> Result<Option<Back>, StoreError> {
        within_limit(async { line_before(&mut *self.pool.acquire().await?, key).await }).await
    }

    /// Returns to what was active before. `head` is of that version.
    ///
    /// # Errors
    /// When the database is away; inside, when somebody else was faster.
    pub async fn roll_template_back(
        &self,
        head: &TemplateHead,
        back: &Back,
        edit: &Edit<'_>,
    ) -> Result<Result<Switched, Refused>, StoreError> {
        self.change(&head.key, edit, async |tx, active| match line_before(tx, &head.key).await? {
            None => Ok(Err(Refused::NothingBefore)),
            Some(now) if now != *back => Ok(Err(Refused::Conflict { active, expected: Some(now.version) })),
            Some(_) => {
                switch(tx, head, back.version, (active, Some(*back)), edit, "template.roll_back").await?;
                Ok(Ok(Switched { before: active, now: Some(back.version) }))
            }
        })
        .await
    }

    /// Makes no version active.
    ///
    /// # Errors
    /// When the database is away; inside, when none is, or the edit does not fit what is there.
    pub async fn deactivate_template(
        &self,
        key: &str,
        edit: &Edit<'_>,
    ) -> Result<Result<Switched, Refused>, StoreError> {
        self.change(key, edit, async |tx, active| {
            if active.is_none() {
                return Ok(Err(Refused::NotActive));
            }
            let operator = operator_id(tx, edit.by).await?;
            sqlx::query!(
                "update email_templates set is_active = false, updated_by = $2, updated_at = now() where key = $1",
                key,
                operator
            )
            .execute(&mut *tx)
            .await?;
            note(tx, key, (active, None), None, edit, "template.deactivate").await?;
            Ok(Ok(Switched { before: active, now: None }))
        })
        .await
    }

    /// Runs a change of one key alone, and commits it unless it was refused.
    async fn change<T>(
        &self,
        key: &str,
        edit: &Edit<'_>,
        change: impl AsyncFnOnce(&mut PgConnection, Option<i32>) -> Result<Result<T, Refused>, StoreError>,
    ) -> Result<Result<T, Refused>, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            sqlx::query!("select pg_advisory_xact_lock(hashtextextended('postrider template ' || $1, 0))", key)
                .execute(&mut *tx)
                .await?;
            let active = sqlx::query_scalar!("select version from email_templates where key = $1 and is_active", key)
                .fetch_optional(&mut *tx)
                .await?;
            let changed = if edit.expects.is_met(active) {
                change(&mut tx, active).await?
            } else {
                let expected = match edit.expects {
                    Expects::NoneAfter(version) => Some(version),
                    Expects::Exactly(version) => version,
                    Expects::Anything => None,
                };
                Err(Refused::Conflict { active, expected })
            };
            if changed.is_ok() {
                tx.commit().await?;
            } else {
                tx.rollback().await?;
            }
            whole.end();
            Ok(changed)
        })
        .await
    }
}

async fn insert_version(
    tx: &mut PgConnection,
    head: &TemplateHead,
    version: i32,
    source: &Value,
    checksum: &[u8; 32],
    by: &str,
) -> Result<(), StoreError> {
    let operator = operator_id(tx, by).await?;
    sqlx::query!(
        "insert into email_template_versions (id, template_key, version, source, checksum, created_by)
         values ($1, $2, $3, $4, $5, $6)",
        Uuid::now_v7(),
        head.key,
        version,
        source,
        checksum.as_slice(),
        operator
    )
    .execute(&mut *tx)
    .await?;
    let after = Some(json!({ "version": version }));
    changes::record(tx, &Change { by, action: "template.save", target: &head.key, before: None, after }).await
}

/// Makes a version active that is not.
async fn switch(
    tx: &mut PgConnection,
    head: &TemplateHead,
    version: i32,
    from: (Option<i32>, Option<Back>),
    edit: &Edit<'_>,
    action: &str,
) -> Result<(), StoreError> {
    let operator = operator_id(tx, edit.by).await?;
    sqlx::query!(
        "insert into email_templates (id, key, subject, html_content, text_content, required_variables,
            attachments_allowed, category, version, created_by, updated_by)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
         on conflict (key) do update set subject = excluded.subject, html_content = excluded.html_content,
            text_content = excluded.text_content, required_variables = excluded.required_variables,
            attachments_allowed = excluded.attachments_allowed, category = excluded.category,
            version = excluded.version, is_active = true, updated_by = excluded.updated_by, updated_at = now()",
        Uuid::now_v7(),
        head.key,
        head.subject,
        head.html,
        head.text,
        &head.required_variables,
        head.attachments_allowed,
        head.category,
        version,
        operator
    )
    .execute(&mut *tx)
    .await?;
    note(tx, &head.key, from, Some(version), edit, action).await
}

/// History, change log, generation, and the word to all daemons.
async fn note(
    tx: &mut PgConnection,
    key: &str,
    (before, back): (Option<i32>, Option<Back>),
    now: Option<i32>,
    edit: &Edit<'_>,
    action: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into email_template_activations (template_key, version, activated_by, back_to)
         select $1, $2, left($3, 100), case when $4 then $5::bigint else max(id) end
         from email_template_activations where template_key = $1::varchar",
        key,
        now,
        edit.by,
        back.is_some(),
        back.and_then(|back| back.back_to)
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("update template_generation set generation = generation + 1").execute(&mut *tx).await?;
    let mut after = json!({ "version": now });
    if !edit.accepted.is_empty() {
        after["accepted"] = json!(edit.accepted);
    }
    let before = Some(json!({ "version": before }));
    changes::record(tx, &Change { by: edit.by, action, target: key, before, after: Some(after) }).await?;
    told::tell(tx, Topic::Templates).await
}

/// The latest line of the way back on which another version was active.
async fn line_before(connection: &mut PgConnection, key: &str) -> Result<Option<Back>, StoreError> {
    Ok(sqlx::query_as!(
        Back,
        r#"with recursive last as (
            select version, back_to from email_template_activations where template_key = $1 order by id desc limit 1
         ), way as (
            select a.id, a.version, a.back_to, 1 as step from last join email_template_activations a on a.id = last.back_to
            union all
            select a.id, a.version, a.back_to, w.step + 1 from way w join email_template_activations a on a.id = w.back_to
            where w.step < 1000
         )
         select id as "line!", back_to, version as "version!" from way
         where version is not null and version is distinct from (select version from last) order by step limit 1"#,
        key
    )
    .fetch_optional(connection)
    .await?)
}

/// Who saved or activated a version, for the columns that point at them. A daemon that starts is nobody.
async fn operator_id(tx: &mut PgConnection, by: &str) -> Result<Option<Uuid>, StoreError> {
    let Some(name) = by.strip_prefix("operator:") else { return Ok(None) };
    let id = sqlx::query_scalar!(
        "insert into operators (name) values (left($1, 100))
         on conflict (name) do update set name = excluded.name returning id",
        name
    )
    .fetch_one(tx)
    .await?;
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_editor_who_was_overtaken_is_told_both_numbers() {
        assert!(Expects::Anything.is_met(Some(3)) && Expects::Anything.is_met(None));
        assert!(Expects::NoneAfter(3).is_met(Some(3)) && Expects::NoneAfter(4).is_met(Some(3)));
        assert!(!Expects::NoneAfter(2).is_met(Some(3)) && Expects::NoneAfter(2).is_met(None));
        assert!(Expects::Exactly(None).is_met(None) && Expects::Exactly(Some(3)).is_met(Some(3)));
        assert!(!Expects::Exactly(Some(3)).is_met(None) && !Expects::Exactly(Some(4)).is_met(Some(3)));
        let words = Refused::Conflict { active: Some(5), expected: Some(4) }.to_string();
        assert!(words.contains("version 5 is active now") && words.contains("began from version 4"), "{words}");
    }
}
