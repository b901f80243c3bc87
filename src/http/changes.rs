//! `/api/v1/email/changes`: what operators did.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin,
    auth::Operator,
    names::Moment,
    params,
    problem::{Problem, ReadRefusals},
};
use crate::store::changes::{ChangeFilter, ChangeLine};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Name of the token that did it
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "alice")]
    by: Option<String>,
    /// An action such as `template.activate`, or a family of them such as `template`
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "suppression")]
    action: Option<String>,
    /// A key or an id
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$")]
    target: Option<String>,
    /// At or after this time (RFC 3339), or the first moment of this day in UTC; from 1970 to 2999
    #[param(inline, value_type = Option<Moment>)]
    since: Option<String>,
    /// Before this time
    #[param(inline, value_type = Option<Moment>)]
    until: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(pattern = "^[0-9]{1,18}$", example = "7")]
    cursor: Option<String>,
}

impl ListParams {
    /// What they ask for.
    ///
    /// # Errors
    /// 400, naming the parameter that is wrong.
    pub(super) fn filter(self) -> Result<ChangeFilter, Problem> {
        Ok(ChangeFilter {
            by: params::word("by", self.by)?.map(|name| format!("operator:{name}")),
            action: params::word("action", self.action)?,
            target: params::word("target", self.target)?,
            since: params::time("since", self.since.as_deref())?,
            until: params::time("until", self.until.as_deref())?,
            after: params::cursor(self.cursor.as_deref(), |text| text.parse().ok())?,
            limit: params::limit(self.limit)?,
        })
    }
}

/// Changes, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangeList {
    items: Vec<ChangeItem>,
    /// How many match in all, up to 10,000
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<String>,
}

/// Something that an operator did.
#[derive(Debug, Serialize, ToSchema)]
struct ChangeItem {
    id: i64,
    at: DateTime<Utc>,
    /// `operator:<name of the token>`
    changed_by: String,
    /// For instance `template.activate`
    action: String,
    /// A key or an id
    target: String,
    /// What it was
    #[schema(value_type = Object, nullable)]
    before: Option<Value>,
    /// What it is
    #[schema(value_type = Object, nullable)]
    after: Option<Value>,
}

impl From<ChangeLine> for ChangeItem {
    fn from(line: ChangeLine) -> Self {
        let ChangeLine { id, at, changed_by, action, target, before, after } = line;
        Self { id, at, changed_by, action, target, before, after }
    }
}

/// What operators did, newest first
#[utoipa::path(
    get, path = "/changes", tag = "changes", operation_id = "list_changes", params(ListParams),
    responses((status = 200, description = "A page of the change log", body = ChangeList), ReadRefusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<ChangeList>, Problem> {
    let page = admin.store.changes(&params::query(params)?.filter()?).await?;
    Ok(Json(ChangeList {
        total: page.total,
        total_is_exact: page.total_is_exact,
        next: page.next.map(|id| id.to_string()),
        items: page.items.into_iter().map(ChangeItem::from).collect(),
    }))
}
