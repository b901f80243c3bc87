//! Variables made into subject, HTML and text.
//!
//! The engine cannot be interrupted, so what it is given is bounded instead: a version's static cost (checked when it
//! is compiled), the depth and size of the variables, the work and output of loops (`budget`), and the size of
//! each part. A render that stays within these ends in time; on our templates it takes well under a millisecond.
//!
//! Invariant: an error names parts, lines and variables, never a variable's value.

use chrono::{DateTime, SecondsFormat, Utc};
use chrono_tz::Tz;
use handlebars::{Context, Handlebars, Output, RenderContext, RenderErrorReason, Renderable};
use serde_json::{Map, Value, json};

use super::{
    CompiledTemplate, Part,
    budget::{Budget, Each, LOOP_BYTES_MAX, WORK_MAX},
    compile::{CompiledPart, Wording},
    helpers::{self, Stop},
    manifest::RESERVED,
};
use crate::email::RenderedEmail;

#[cfg(test)]
mod tests;

/// Deepest nesting of lists and objects in a variable.
const DEPTH_MAX: usize = 32;
/// Most bytes of all variables of a template together.
const VARIABLES_BYTES_MAX: usize = 256 * 1024;
/// What each value weighs besides its text.
const VALUE_BYTES: usize = 16;
/// Longest subject (RFC 5322 §2.1.1: a line).
const SUBJECT_BYTES_MAX: usize = 998;
/// Largest HTML or text part.
const PART_BYTES_MAX: usize = 1024 * 1024;
/// Most memory that values printed outside of loops can take before they reach the capped output.
const PRINTED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the daemon itself tells a template.
#[derive(Debug, Clone, Copy)]
pub struct System<'a> {
    /// When the request was published.
    pub request_date: DateTime<Utc>,
    /// The request's files.
    pub attachments: &'a [AttachedFile<'a>],
    /// `EMAIL_SUPPORT_EMAIL`.
    pub support_email: Option<&'a str>,
    /// `EMAIL_SUPPORT_PHONE`.
    pub support_phone: Option<&'a str>,
    /// `EMAIL_TIMEZONE`.
    pub timezone: Tz,
    /// The locale that the reader asked for, else the template's: the closest variant is rendered.
    pub locale: &'a str,
    /// Where the recipient unsubscribes; nothing: it is no mail that one unsubscribes from.
    pub unsubscribe_url: Option<&'a str>,
}

/// A file as templates see it.
#[derive(Debug, Clone, Copy)]
pub struct AttachedFile<'a> {
    /// Cleaned.
    pub file_name: &'a str,
    /// As declared.
    pub content_type: &'a str,
}

/// Why a mail could not be made of these variables. All are final: the same bytes fail again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Required variables are missing or null: all of them are named.
    #[error("missing or null: {}", .names.join(", "))]
    MissingVariable {
        /// In the manifest's order.
        names: Vec<String>,
    },
    /// A variable that should be a web address is none.
    #[error("{part}{}: not an http(s) URL", Line(*.line))]
    NotAUrl {
        /// The file.
        part: String,
        /// Where it is used.
        line: Option<usize>,
    },
    /// The variables, or what they were made into, are too large.
    #[error("{what}: more than {limit} bytes; shorten what the variables hold")]
    TooLarge {
        /// What: "the variables", "html.hbs" ...
        what: String,
        /// The limit.
        limit: usize,
    },
    /// Lists and objects lie too deep in a variable.
    #[error("variable {name} is nested more than {DEPTH_MAX} deep: flatten it")]
    TooDeep {
        /// Which variable.
        name: String,
    },
    /// The template does not fit these variables.
    #[error("{part}{}: {words}", Line(*.line))]
    Failed {
        /// The file.
        part: String,
        /// Where.
        line: Option<usize>,
        /// What happened, without any value.
        words: String,
    },
}

struct Line(Option<usize>);

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl CompiledTemplate {
    /// Renders the three parts, all in the same locale. Takes as much time as the template costs: no I/O, no waiting.
    ///
    /// # Errors
    /// See [`RenderError`].
    pub fn render(&self, variables: &Map<String, Value>, system: &System<'_>) -> Result<RenderedEmail, RenderError> {
        let wording = self.wording(system.locale);
        self.render_in(wording, variables, system).map_err(|error| error.in_files_of(wording))
    }

    pub(super) fn render_in(
        &self,
        wording: &Wording,
        variables: &Map<String, Value>,
        system: &System<'_>,
    ) -> Result<RenderedEmail, RenderError> {
        let (mut context, largest) = self.context(variables, wording, system)?;
        let subject = one_line(&wording.render(Part::Subject, &context, largest, system.timezone)?);
        if subject.is_empty() {
            let part = Part::Subject.file_name().to_owned();
            return Err(RenderError::Failed { part, line: None, words: "the subject is empty".into() });
        }
        context.data_mut()[RESERVED]["subject"] = Value::from(subject.as_str());
        let html = wording.render(Part::Html, &context, largest, system.timezone)?;
        let text = wording.render(Part::Text, &context, largest, system.timezone)?;
        Ok(RenderedEmail { template_version: self.version(), subject, html, text })
    }

    /// The declared variables, and what the daemon adds. Undeclared ones are left out: no part can print them.
    pub(super) fn context(
        &self,
        variables: &Map<String, Value>,
        wording: &Wording,
        system: &System<'_>,
    ) -> Result<(Context, usize), RenderError> {
        let manifest = self.manifest();
        let given = |name: &String| variables.get(name).filter(|value| !value.is_null());
        let missing: Vec<String> = manifest.required.iter().filter(|name| given(name).is_none()).cloned().collect();
        if !missing.is_empty() {
            return Err(RenderError::MissingVariable { names: missing });
        }
        let (mut data, mut bytes, mut largest) = (Map::new(), 0, 0);
        for name in manifest.required.iter().chain(&manifest.optional) {
            let before = bytes;
            let value = given(name).map_or(Ok(Value::Null), |value| copy(value, 0, &mut bytes));
            data.insert(name.clone(), value.map_err(|TooDeep| RenderError::TooDeep { name: name.clone() })?);
            largest = largest.max(bytes - before);
        }
        if bytes > VARIABLES_BYTES_MAX {
            return Err(RenderError::TooLarge { what: "the variables".into(), limit: VARIABLES_BYTES_MAX });
        }
        let attachments: Vec<Value> = system
            .attachments
            .iter()
            .map(|file| json!({"filename": file.file_name, "content_type": file.content_type}))
            .collect();
        let postrider = json!({
            "request_date": system.request_date.to_rfc3339_opts(SecondsFormat::Millis, true),
            "has_pdf": system.attachments.iter().any(|file| file.content_type == "application/pdf"),
            "attachments": attachments,
            "support_email": system.support_email,
            "support_phone": system.support_phone,
            "locale": wording.locale,
            "unsubscribe_url": system.unsubscribe_url,
        });
        data.insert(RESERVED.to_owned(), postrider);
        Ok((Context::from(Value::Object(data)), largest))
    }
}

impl Wording {
    /// Renders one part as it is sent. `largest` is the size of the largest single value.
    pub(super) fn render(
        &self,
        part: Part,
        context: &Context,
        largest: usize,
        zone: Tz,
    ) -> Result<String, RenderError> {
        if let Some((moved, registry)) = self.moved().filter(|_| part == Part::Html)
            && let Ok(text) = self.render_with(part, moved, registry, context, largest, zone)
        {
            return Ok(text);
        }
        // Where it fails, it is the lines as they were written that help.
        let (compiled, registry) = self.part(part);
        self.render_with(part, compiled, registry, context, largest, zone)
    }

    pub(super) fn render_with(
        &self,
        part: Part,
        compiled: &CompiledPart,
        registry: &Handlebars<'static>,
        context: &Context,
        largest: usize,
        zone: Tz,
    ) -> Result<String, RenderError> {
        let limit = if part == Part::Subject { SUBJECT_BYTES_MAX } else { PART_BYTES_MAX };
        // Every value printed once is the worst that can pile up in blocks before any of it reaches the output.
        if compiled.usage.values.saturating_mul(largest) > PRINTED_BYTES_MAX {
            return Err(RenderError::TooLarge { what: format!("what {part} prints"), limit: PRINTED_BYTES_MAX });
        }
        let budget = Budget::new(compiled.usage.elements);
        let mut out = Capped { text: String::with_capacity((compiled.usage.raw_bytes * 5 / 4).min(limit)), limit };
        let mut render = RenderContext::new(None);
        render.register_local_helper("each", Box::new(Each(&budget)));
        helpers::register_dates(&mut render, self.style, zone);
        match compiled.template.render(registry, context, &mut render, &mut out) {
            Ok(()) => Ok(out.text),
            Err(error) => Err(failure(part, limit, &error)),
        }
    }
}

impl RenderError {
    /// The same, with the names of the files that this locale is written in.
    fn in_files_of(self, wording: &Wording) -> Self {
        match self {
            Self::NotAUrl { part, line } => Self::NotAUrl { part: wording.file(&part), line },
            Self::Failed { part, line, words } => Self::Failed { part: wording.file(&part), line, words },
            Self::TooLarge { what, limit } => Self::TooLarge { what: wording.file(&what), limit },
            other => other,
        }
    }
}

struct TooDeep;

/// A copy in which whole numbers are integers: producers' numbers are floats on the wire, and `45.0 sites` reads badly.
fn copy(value: &Value, depth: usize, bytes: &mut usize) -> Result<Value, TooDeep> {
    if depth > DEPTH_MAX {
        return Err(TooDeep);
    }
    *bytes += VALUE_BYTES;
    Ok(match value {
        Value::String(text) => {
            *bytes += text.len();
            Value::String(text.clone())
        }
        Value::Number(number) => match number.as_f64() {
            // Every float of this range is exact as an integer.
            #[allow(clippy::cast_possible_truncation)]
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => Value::from(float as i64),
            _ => value.clone(),
        },
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| copy(item, depth + 1, bytes)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let mut copied = Map::new();
            for (key, item) in map {
                *bytes += key.len();
                copied.insert(key.clone(), copy(item, depth + 1, bytes)?);
            }
            Value::Object(copied)
        }
        Value::Null | Value::Bool(_) => value.clone(),
    })
}

/// A subject's one line: runs of line breaks, tabs and other control characters are one blank.
pub(super) fn one_line(text: &str) -> String {
    let is_break = |c: char| c == ' ' || c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let mut line = String::with_capacity(text.len());
    for word in text.split(is_break).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

struct Capped {
    text: String,
    limit: usize,
}

impl Output for Capped {
    fn write(&mut self, segment: &str) -> std::io::Result<()> {
        if self.text.len() + segment.len() > self.limit {
            return Err(std::io::Error::other(Stop::TooLarge));
        }
        self.text.push_str(segment);
        Ok(())
    }
}

/// The engine's error in our words: its own may hold values.
fn failure(part: Part, limit: usize, error: &handlebars::RenderError) -> RenderError {
    let file = match error.template_name.as_deref() {
        Some(name) if name != part.file_name() => part.partial_file_name(name),
        _ => part.file_name().to_owned(),
    };
    let stop = match error.reason() {
        RenderErrorReason::NestedError(inner) => inner.downcast_ref::<Stop>(),
        RenderErrorReason::IOError(inner) => inner.get_ref().and_then(|inner| inner.downcast_ref::<Stop>()),
        _ => None,
    };
    let line = error.line_no;
    let words = match (stop, error.reason()) {
        (Some(Stop::NotAUrl), _) => return RenderError::NotAUrl { part: file, line },
        (Some(Stop::TooLarge), _) => return RenderError::TooLarge { what: part.file_name().to_owned(), limit },
        (Some(Stop::TooMuchWork), _) => format!(
            "the variables make it repeat too much (more than {WORK_MAX} elements, or {LOOP_BYTES_MAX} bytes in loops): shorten \
             their lists"
        ),
        (Some(Stop::ParameterMissing), _) => "a helper's parameter has no value".to_owned(),
        (None, RenderErrorReason::MissingVariable(Some(path))) => format!("{path} has no value"),
        (None, RenderErrorReason::ParamNotFoundForIndex(helper, _)) => format!("a parameter of {helper} has no value"),
        (None, RenderErrorReason::InvalidJsonIndex(_)) => "a list has no such item".to_owned(),
        (None, _) => "a value is not of the kind that is needed here".to_owned(),
    };
    RenderError::Failed { part: file, line, words }
}
