//! Parameters that several routes take: each fault is told with the parameter's name.

use axum::{
    Json,
    extract::{
        Query,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned},
};
use serde_json::{Map, Number, Value};
use uuid::Uuid;

use super::{Admin, BODY_BYTES_MAX, problem::Problem};
use crate::email::EmailAddress;

/// Items of a page, unless it is said.
const LIMIT_DEFAULT: i64 = 50;
/// Items of a page at most.
const LIMIT_MAX: i64 = 500;
/// Up to this, every whole number is one that a float can be.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
/// Longest name that is looked for, in characters: no column holds a longer one.
const NAME_CHARS_MAX: usize = 100;

/// A fault of what was asked.
pub(super) fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

pub(super) fn query<T>(params: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    params.map(|Query(params)| params).map_err(|error| bad(error.body_text()))
}

/// An object, and only that: serde would read its members out of a list as well.
pub(super) struct Members<T>(pub(super) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Value::Object(Map::deserialize(deserializer)?);
        make_whole(&mut members);
        serde_json::from_value(members).map(Self).map_err(de::Error::custom)
    }
}

/// A body that is no JSON, or of another shape, or too large.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
pub(super) fn unreadable(error: JsonRejection) -> Problem {
    unreadable_body(error.status(), error.body_text())
}

/// A body that was not read to its end, or not understood.
pub(super) fn unreadable_body(status: StatusCode, words: String) -> Problem {
    let words = match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body has more than {BODY_BYTES_MAX} bytes, the limit of this listener: send less at once")
        }
        _ => words,
    };
    Problem::new(status, words)
}

/// Writes 5.0 as 5: to JSON both are the same whole number, and serde takes only one of them for it.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) if !number.is_i64() && !number.is_u64() => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= WHOLE_MAX);
            if let Some(n) = whole {
                *number = Number::from(n as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(members) => members.values_mut().for_each(make_whole),
        _ => {}
    }
}

/// A body that may be left out, or be null.
pub(super) type Optional<T> = Result<Option<Json<Option<Members<T>>>>, JsonRejection>;

/// What came with a request, if anything did.
pub(super) fn optional<T: Default>(body: Optional<T>) -> Result<T, Problem> {
    let body = body.map_err(unreadable)?;
    Ok(body.and_then(|Json(given)| given).map(|Members(given)| given).unwrap_or_default())
}

/// What came with a request, as a JSON object.
pub(super) fn body<T>(body: Result<Json<Members<T>>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(Members(body))| body).map_err(unreadable)
}

pub(super) fn limit(given: Option<i64>) -> Result<i64, Problem> {
    let limit = given.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(bad(format!("limit must be 1 to {LIMIT_MAX}"))) }
}

/// The keyed hash of the address that is searched for.
pub(super) fn recipient(admin: &Admin, name: &str, given: Option<&str>) -> Result<Option<[u8; 32]>, Problem> {
    let Some(text) = given else { return Ok(None) };
    let hint = if text.contains(' ') { "; in a URL, + is written %2B" } else { "" };
    let address = EmailAddress::parse(text).map_err(|error| bad(format!("{name}: {error}{hint}")))?;
    Ok(Some(admin.store.address_hash(&address.key())))
}

/// A key or another name; anything that could be one.
pub(super) fn word(name: &str, given: Option<String>) -> Result<Option<String>, Problem> {
    match given {
        Some(text) if text.is_empty() || text.contains('\0') || text.chars().count() > NAME_CHARS_MAX => {
            Err(bad(format!("{name}: 1 to {NAME_CHARS_MAX} characters, none of them NUL")))
        }
        other => Ok(other),
    }
}

/// One of a closed list of names.
pub(super) fn one_of<T>(
    name: &str,
    given: Option<&str>,
    read: impl Fn(&str) -> Option<T>,
    names: impl Iterator<Item = &'static str>,
) -> Result<Option<T>, Problem> {
    let Some(text) = given else { return Ok(None) };
    read(text).map(Some).ok_or_else(|| bad(format!("{name}: it is one of {}", names.collect::<Vec<_>>().join(", "))))
}

/// A time, or a date: its first moment in UTC.
pub(super) fn time(name: &str, given: Option<&str>) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(text) = given else { return Ok(None) };
    let read = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).ok();
    let read = read.or_else(|| Some(text.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN).and_utc()));
    let hint = if text.contains(' ') { "; in a URL, + is written %2B" } else { "" };
    // Further off is nothing that the database would take.
    let years = DateTime::UNIX_EPOCH..DateTime::from_timestamp(32_503_680_000, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
    read.filter(|at| years.contains(at)).map(Some).ok_or_else(|| {
        bad(format!("{name}: a date or time from 1970 on, such as 2026-11-24 or 2026-11-24T18:00:00Z{hint}"))
    })
}

pub(super) fn uuid(name: &str, text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| bad(format!("{name}: it is no UUID")))
}

/// What stands after the last item of a page.
pub(super) fn cursor<T>(given: Option<&str>, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    given.map(|text| read(text).ok_or_else(|| bad("cursor: use the `next` of an earlier answer"))).transpose()
}
