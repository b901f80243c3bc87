//! Trying a template out: what stands against it, what it makes of some variables, and a test mail.
//!
//! Invariant: a test mail is a request through the broker like any other, marked as a test.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    super::{
        Admin,
        auth::Operator,
        params::{self, Members},
        problem::{Problem, Refusals},
    },
    BadBody, FindingItem, Missing, base, findings_json, key_of,
    variants::{self, VariantBody},
};
use crate::{
    broker::topology,
    config::{MailConfig, Role},
    email::{EmailAddress, Priority, RenderedEmail},
    publish::{self, Draft},
    reload,
    store::templates::change::Refused,
    templates::{CompiledTemplate, LintFault, System, TemplateSource},
    versions::{self, Finding, Parts, VersionError},
};

/// Characters of a locale (RFC 5646, section 4.4.1).
const LOCALE_CHARS_MAX: usize = 35;

/// A version that is not saved. What is not given comes from the version that it is based on.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Unsaved {
    /// `manifest.toml`
    manifest: Option<String>,
    subject: Option<String>,
    html_content: Option<String>,
    text_content: Option<String>,
    /// The partials of the HTML part by name, all of them
    partials_html: Option<BTreeMap<String, String>>,
    /// The partials of the text part by name, all of them
    partials_text: Option<BTreeMap<String, String>>,
    /// The same in other locales, all of them
    variants: Option<BTreeMap<String, VariantBody>>,
    /// Variables to show and to check it with
    #[schema(value_type = Option<Object>)]
    sample: Option<Map<String, Value>>,
    /// The version that it is based on; without it the active one, else the newest
    #[schema(minimum = 1)]
    based_on: Option<i32>,
}

impl Unsaved {
    async fn source(self, admin: &Admin, key: &str) -> Result<TemplateSource, Problem> {
        let base = base(admin, key, self.based_on).await?;
        let parts = Parts {
            manifest: self.manifest,
            subject: self.subject,
            html: self.html_content,
            text: self.text_content,
            partials_html: self.partials_html,
            partials_text: self.partials_text,
            variants: self.variants.map(variants::read),
            sample: self.sample,
        };
        parts.onto(key, base).map_err(|missing| VersionError::Incomplete { key: key.to_owned(), missing }.into())
    }
}

/// What stands against a version.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Checked {
    /// Whether it could be saved
    is_sound: bool,
    findings: Vec<FindingItem>,
}

/// Check a version that is not saved
///
/// By itself, with its sample, and against what producers sent lately: names and kinds of variables, never a value.
#[utoipa::path(
    post, path = "/templates/{key}/lint", tag = "templates", operation_id = "lint_template",
    params(("key" = String, Path, description = "The template; there need not be one", max_length = 100)),
    request_body = Unsaved,
    responses((status = 200, description = "What stands against it", body = Checked), Refusals, Missing, BadBody)
)]
pub(in crate::http) async fn check(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
    body: Result<Json<Members<Unsaved>>, JsonRejection>,
) -> Result<Json<Checked>, Problem> {
    let key = key_of(key)?;
    let unsaved = params::body(body)?;
    let source = unsaved.source(&admin, &key).await?;
    let findings = versions::check(&admin.store, source).await?;
    let is_sound = findings.iter().all(|finding| finding.severity != versions::Severity::Fault);
    Ok(Json(Checked { is_sound, findings: findings_json(findings) }))
}

/// A version that is not saved, and variables for it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Preview {
    /// What is different from the version that it is based on
    #[serde(default)]
    source: Unsaved,
    /// Without them the sample
    #[schema(value_type = Option<Object>)]
    variables: Option<Map<String, Value>>,
    /// What the reader would ask for, for instance `en-GB`; without it the template's own
    #[schema(max_length = 35)]
    locale: Option<String>,
}

/// What a version makes of some variables. Without subject and bodies when it cannot: `faults` says why.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct Previewed {
    pub(in crate::http) subject: Option<String>,
    pub(in crate::http) html: Option<String>,
    pub(in crate::http) text: Option<String>,
    pub(in crate::http) faults: Vec<FindingItem>,
}

/// Render a version that is not saved
#[utoipa::path(
    post, path = "/templates/{key}/preview", tag = "templates", operation_id = "preview_template",
    params(("key" = String, Path, description = "The template; there need not be one", max_length = 100)),
    request_body = Preview,
    responses((status = 200, description = "The mail, or why there is none", body = Previewed), Refusals, Missing, BadBody)
)]
pub(in crate::http) async fn preview(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
    body: Result<Json<Members<Preview>>, JsonRejection>,
) -> Result<Json<Previewed>, Problem> {
    let key = key_of(key)?;
    let Preview { source, variables, locale } = params::body(body)?;
    let locale = locale_of(locale)?;
    let source = source.source(&admin, &key).await?;
    Ok(Json(try_out(&admin, source, variables, locale).await))
}

/// What a reader would ask for, unless no reader could.
fn locale_of(given: Option<String>) -> Result<Option<String>, Problem> {
    match given {
        Some(text) if text.chars().count() > LOCALE_CHARS_MAX => {
            Err(params::bad(format!("locale: it has at most {LOCALE_CHARS_MAX} characters")))
        }
        given => Ok(given),
    }
}

/// Compiles and renders; without variables, the sample.
pub(in crate::http) async fn try_out(
    admin: &Arc<Admin>,
    source: TemplateSource,
    variables: Option<Map<String, Value>>,
    locale: Option<String>,
) -> Previewed {
    let admin = Arc::clone(admin);
    versions::by_hand(move || {
        let template = match CompiledTemplate::compile(&source, 0, admin.rules.tries_default) {
            Ok(template) => template,
            Err(faults) => {
                let faults = findings_json(faults.into_iter().map(Finding::fault).collect());
                return Previewed { faults, ..Previewed::default() };
            }
        };
        match render(&admin.mail, &template, variables.as_ref().unwrap_or(&source.sample), locale.as_deref()) {
            Ok(mail) => Previewed {
                subject: Some(mail.subject),
                html: Some(mail.html),
                text: Some(mail.text),
                faults: Vec::new(),
            },
            Err(words) => {
                let fault = Finding::fault(LintFault { part: "variables".to_owned(), line: None, words });
                Previewed { faults: findings_json(vec![fault]), ..Previewed::default() }
            }
        }
    })
    .await
}

fn render(
    mail: &MailConfig,
    template: &CompiledTemplate,
    variables: &Map<String, Value>,
    locale: Option<&str>,
) -> Result<RenderedEmail, String> {
    let system = System {
        request_date: Utc::now(),
        attachments: &[],
        support_email: mail.support_email.as_deref(),
        support_phone: mail.support_phone.as_deref(),
        timezone: mail.timezone,
        locale: locale.unwrap_or(&template.manifest().locale),
        unsubscribe_url: template.manifest().example_unsubscribe_url(),
    };
    template.render(variables, &system).map_err(|error| error.to_string())
}

/// A test of a saved version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Test {
    /// Who gets it, if it is sent
    #[schema(max_length = 320)]
    to: Option<String>,
    #[serde(default)]
    #[schema(value_type = Object)]
    variables: Map<String, Value>,
    /// Without it, the active version
    #[schema(minimum = 1)]
    version: Option<i32>,
    /// What the reader would ask for, for instance `en-GB`; without it the template's own
    #[schema(max_length = 35)]
    locale: Option<String>,
    /// Whether a mail is sent to `to`: that needs the role operator
    #[serde(default)]
    send: bool,
}

/// What became of a test.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Tested {
    template_version: i32,
    subject: String,
    html: String,
    text: String,
    sent: bool,
    /// The request that was published; null: none was
    pub(in crate::http) request_id: Option<Uuid>,
}

/// Render a saved version, and send it if asked to
///
/// It is sent as a request through the broker, marked as a test.
#[utoipa::path(
    post, path = "/templates/{key}/test", tag = "templates", operation_id = "test_template",
    params(("key" = String, Path, description = "The template", max_length = 100)),
    request_body = Test,
    responses((status = 200, description = "The mail", body = Tested), Refusals, Missing, BadBody)
)]
pub(in crate::http) async fn test(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(key): Path<String>,
    body: Result<Json<Members<Test>>, JsonRejection>,
) -> Result<Json<Tested>, Problem> {
    let key = key_of(key)?;
    let test = params::body(body)?;
    if test.send {
        operator.needs(Role::Operator)?;
    }
    let Test { to, variables, version, locale, send } = test;
    let trial = Trial { version, variables, locale, to: to.filter(|_| send), send };
    Ok(Json(test_version(&admin, &key, trial).await?))
}

/// A saved version to be rendered, and to be sent if somebody is named.
pub(in crate::http) struct Trial {
    pub(in crate::http) version: Option<i32>,
    pub(in crate::http) variables: Map<String, Value>,
    pub(in crate::http) locale: Option<String>,
    pub(in crate::http) to: Option<String>,
    pub(in crate::http) send: bool,
}

/// Renders a saved version, and sends it if somebody is named.
pub(in crate::http) async fn test_version(admin: &Arc<Admin>, key: &str, trial: Trial) -> Result<Tested, Problem> {
    let Trial { version, variables, locale, to, send } = trial;
    let locale = locale_of(locale)?.filter(|locale| !locale.is_empty());
    if send {
        EmailAddress::parse(to.as_deref().unwrap_or_default())
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("to: {error}")))?;
    }
    let template = saved(admin, key, version).await?;
    let (trying, compiled, given) = (Arc::clone(admin), Arc::clone(&template), variables.clone());
    let asked = locale.clone();
    let mail = versions::by_hand(move || render(&trying.mail, &compiled, &given, asked.as_deref()))
        .await
        .map_err(|words| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, words))?;
    let request_id = match to {
        Some(to) => Some(publish_test(admin, &template, to, locale, variables).await?),
        None => None,
    };
    Ok(Tested {
        template_version: mail.template_version,
        subject: mail.subject,
        html: mail.html,
        text: mail.text,
        sent: request_id.is_some(),
        request_id,
    })
}

/// This version, else the one in use.
async fn saved(admin: &Admin, key: &str, version: Option<i32>) -> Result<Arc<CompiledTemplate>, Problem> {
    let Some(version) = version else {
        let nothing = "there is no active template of this key; name a version";
        return admin.catalogue.active(key).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, nothing));
    };
    if let Some(known) = admin.catalogue.version(key, version) {
        return Ok(known);
    }
    let stored = admin.store.template_version(key, version).await?;
    let stored = stored.ok_or(VersionError::Refused(Refused::UnknownVersion(version)))?;
    let tries_default = admin.rules.tries_default;
    versions::by_hand(move || reload::compile_stored(&stored, tries_default))
        .await
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

async fn publish_test(
    admin: &Admin,
    template: &CompiledTemplate,
    to: String,
    locale: Option<String>,
    variables: Map<String, Value>,
) -> Result<Uuid, Problem> {
    let id = Uuid::new_v4();
    let draft = Draft {
        request_id: id,
        source: "test".to_owned(),
        template_key: template.key().to_owned(),
        template_version: u32::try_from(template.version()).unwrap_or(0),
        to: vec![to],
        variables,
        attachments: Vec::new(),
        priority: Priority::P1,
        metadata: [("test".to_owned(), "true".to_owned())].into(),
    };
    let mut request = draft.into_wire();
    request.locale = locale.unwrap_or_default();
    let outgoing = publish::outgoing(&request, topology::REQUESTS)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    admin
        .publisher
        .publish(&outgoing)
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    Ok(id)
}
