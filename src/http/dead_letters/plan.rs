//! `POST /api/v1/email/dead-letters/plan`: what would become of letters; and `GET .../groups`: what waits.
//!
//! A plan keeps nothing: somebody who tries ten filters leaves nothing behind. Making a run plans anew and keeps that plan, so
//! that what is looked at before it is started is what it does.

use std::sync::Arc;

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    email::Reason,
    http::{
        Admin,
        auth::Operator,
        names::{Moment, ReasonName},
        params::{self, Members},
        problem::{BodyRefusals, Problem, ProblemDetails, Refusals},
    },
    replay::Templates,
    store::{
        dead::DeadFilter,
        replay::{Chosen, PlanCounts},
    },
};

/// Letters that can be named in one request.
const IDS_MAX: usize = 1000;

/// Which letters are meant: these, or all that match and have not been dealt with.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Which {
    /// Letters by their own ids or by those of their requests; nothing else may be given then
    #[schema(min_items = 1, max_items = 1000)]
    pub(in crate::http) ids: Option<Vec<Uuid>>,
    /// Of this reason
    #[schema(inline, value_type = Option<ReasonName>)]
    pub(in crate::http) reason: Option<String>,
    /// Of this template
    #[schema(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$")]
    pub(in crate::http) template: Option<String>,
    /// From this source
    #[schema(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$")]
    pub(in crate::http) source: Option<String>,
    /// Whose mail to this address failed. What could not be read, or matched no queue, is not found so
    #[schema(format = Email)]
    pub(in crate::http) to: Option<String>,
    /// Failed at or after this time (RFC 3339), or the first moment of this day in UTC
    #[schema(inline, value_type = Option<Moment>)]
    pub(in crate::http) since: Option<String>,
    /// Failed before this time
    #[schema(inline, value_type = Option<Moment>)]
    pub(in crate::http) until: Option<String>,
}

impl Which {
    /// The letters that are meant.
    ///
    /// # Errors
    /// 400, naming what is wrong; 404 for an id that no letter has.
    pub(in crate::http) async fn chosen(self, admin: &Admin) -> Result<Chosen, Problem> {
        let Some(ids) = self.ids else { return Ok(Chosen::Filter(Box::new(self.filter(admin)?))) };
        let others = [&self.reason, &self.template, &self.source, &self.to, &self.since, &self.until];
        if others.into_iter().any(Option::is_some) || ids.is_empty() || ids.len() > IDS_MAX {
            return Err(params::bad(format!("ids: 1 to {IDS_MAX}, and nothing else beside them")));
        }
        let mut all = Vec::new();
        for id in ids {
            let letters = admin.store.dead_letters_of(id).await?;
            if letters.is_empty() {
                let detail = format!("there is no dead letter {id}, and none of a request {id}");
                return Err(Problem::new(StatusCode::NOT_FOUND, detail));
            }
            all.extend(letters.into_iter().filter(|letter| !all.contains(letter)).collect::<Vec<_>>());
        }
        Ok(Chosen::Ids(all))
    }

    fn filter(self, admin: &Admin) -> Result<DeadFilter, Problem> {
        let reasons = Reason::ALL.iter().map(|reason| reason.name());
        Ok(DeadFilter {
            reason: params::one_of("reason", self.reason.as_deref(), Reason::from_name, reasons)?
                .map(|reason| reason.name().to_owned()),
            template_key: params::word("template", self.template)?,
            source: params::word("source", self.source)?,
            since: params::time("since", self.since.as_deref())?,
            until: params::time("until", self.until.as_deref())?,
            recipient_hash: params::recipient(admin, "to", self.to.as_deref())?,
            ..DeadFilter::default()
        })
    }
}

/// What would become of letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Plan {
    /// All that are meant
    letters: i32,
    /// Those that would go on their way
    open: i32,
    /// Those that would be left alone
    skipped: i32,
    /// What would go on its way, the largest groups first; at most a hundred
    groups: Vec<Group>,
    /// Letters of the groups that are left out
    in_other_groups: i32,
    /// Why the others would not, the most frequent first
    skips: Vec<Skipped>,
}

/// Letters that would go on their way alike.
#[derive(Debug, Serialize, ToSchema)]
struct Group {
    /// Why they are dead letters
    reason: String,
    template_key: Option<String>,
    /// Whose words they would send; null where that is for their arrival to find out
    template_version: Option<i32>,
    letters: i32,
}

/// Letters that would be skipped for one reason.
#[derive(Debug, Serialize, ToSchema)]
struct Skipped {
    /// For programs
    why: String,
    /// For people
    words: String,
    letters: i32,
}

impl From<&PlanCounts> for Plan {
    fn from(plan: &PlanCounts) -> Self {
        let group = |group: &crate::store::replay::PlanGroup| Group {
            reason: group.reason.clone(),
            template_key: group.template_key.clone(),
            template_version: group.template_version,
            letters: group.letters,
        };
        let skip = |skip: &crate::store::replay::PlanSkip| Skipped {
            why: skip.why.clone(),
            words: skip.words.clone(),
            letters: skip.letters,
        };
        Self {
            letters: plan.letters,
            open: plan.open,
            skipped: plan.skipped,
            groups: plan.groups.iter().map(group).collect(),
            in_other_groups: plan.in_other_groups,
            skips: plan.skips.iter().map(skip).collect(),
        }
    }
}

/// What is to be planned.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ToPlan {
    /// Which letters
    #[serde(default)]
    filter: Which,
    /// As if the words of the first time were sent again
    #[serde(default)]
    keep_version: bool,
}

/// What would become of these letters if they were replayed now; changes and keeps nothing
#[utoipa::path(
    post, path = "/dead-letters/plan", tag = "dead letters", operation_id = "plan_replay", request_body = ToPlan,
    responses(
        (status = 200, description = "The plan, in numbers", body = Plan),
        (status = 404, description = "There is no letter of an id", body = ProblemDetails,
            content_type = "application/problem+json"),
        Refusals, BodyRefusals
    )
)]
pub(in crate::http) async fn plan(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    body: Result<Json<Members<ToPlan>>, JsonRejection>,
) -> Result<Json<Plan>, Problem> {
    let given = params::body(body)?;
    let chosen = given.filter.chosen(&admin).await?;
    let rules = Templates::load(&admin.store).await?.rules(given.keep_version, admin.rules.audit_retention);
    let plan = admin.store.plan(&chosen, &rules, |_| {}).await?;
    Ok(Json(Plan::from(&plan)))
}

/// What waits, grouped.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Groups {
    /// The largest first; at most 200
    items: Vec<Waiting>,
    /// Letters that wait, of all groups
    total: i64,
    /// Whether all that wait were counted: at most 100,000 are
    total_is_exact: bool,
}

/// Letters that wait, of one reason and template.
#[derive(Debug, Serialize, ToSchema)]
struct Waiting {
    reason: String,
    template_key: Option<String>,
    letters: i64,
    /// When the first of them was archived
    oldest: DateTime<Utc>,
    /// And the last
    newest: DateTime<Utc>,
}

/// Letters that wait, by reason and template
#[utoipa::path(
    get, path = "/dead-letters/groups", tag = "dead letters", operation_id = "dead_letter_groups",
    responses((status = 200, description = "The groups", body = Groups), Refusals)
)]
pub(in crate::http) async fn groups(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
) -> Result<Json<Groups>, Problem> {
    let groups = admin.store.dead_groups().await?;
    Ok(Json(Groups {
        total: groups.letters,
        total_is_exact: groups.is_exact,
        items: groups
            .items
            .into_iter()
            .map(|group| Waiting {
                reason: group.reason,
                template_key: group.template_key,
                letters: group.letters,
                oldest: group.oldest,
                newest: group.newest,
            })
            .collect(),
    }))
}
