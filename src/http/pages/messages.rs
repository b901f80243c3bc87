//! "Did they get it?": the list of mails, one mail with everything that is known of it, and the mail as it was.
//!
//! Invariant: what shows a person is for operators, and whoever looks at one mail is noted before it is shown.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use chrono_tz::Tz;
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    PageError,
    layout::{
        self, Section, badge, choice, csrf, field, further, given, moment, needs_operator, page, recipient_field, time,
        time_or_dash, total,
    },
    mail_document,
    session::{Posted, Session},
};
use crate::{
    email::Status,
    http::{Admin, messages::address_for, params, problem::Problem, resend::resend_as},
    retransmission::{self, Refusal},
    store::{
        messages::{
            MessageFilter, MessagePage, MessageSummary,
            detail::{BodyPart, Message, MessageDetail, MessageEvent, View, Viewed},
        },
        retransmission::Retransmission,
    },
};

/// Mails on a page.
const LIMIT: i64 = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    to: Option<String>,
    status: Option<String>,
    template: Option<String>,
    source: Option<String>,
    request_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    cursor: Option<String>,
}

impl Asked {
    /// Forms send what was left empty as well.
    fn filter(&self, admin: &Admin, zone: Tz) -> Result<MessageFilter, Problem> {
        let names = Status::ALL.iter().map(|status| status.name());
        let request_id = given(&self.request_id).map(|text| params::uuid("request", &text)).transpose()?;
        Ok(MessageFilter {
            recipient_hash: params::recipient(admin, "to", given(&self.to).as_deref())?,
            request_ids: request_id.map(|id| vec![id]),
            status: params::one_of("status", given(&self.status).as_deref(), Status::from_name, names)?,
            template_key: params::word("template", given(&self.template))?,
            source: params::word("source", given(&self.source))?,
            since: params::time("since", moment(&self.since, zone).as_deref())?,
            until: params::time("until", moment(&self.until, zone).as_deref())?,
            after: params::cursor(given(&self.cursor).as_deref(), |text| text.parse().ok())?,
            limit: LIMIT,
        })
    }

    fn pairs(&self) -> [(&'static str, Option<&str>); 7] {
        [
            ("to", self.to.as_deref()),
            ("status", self.status.as_deref()),
            ("template", self.template.as_deref()),
            ("source", self.source.as_deref()),
            ("request_id", self.request_id.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
        ]
    }
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, PageError> {
    let asked = params::query(asked)?;
    // What cannot be asked for is told beside the form, where it can be mended.
    let (found, wrong, status) = match asked.filter(&admin, session.zone) {
        Ok(filter) => (Some(admin.store.messages(&filter).await?), None, StatusCode::OK),
        Err(problem) => (None, Some(problem.detail().to_owned()), problem.status()),
    };
    let body = html! {
        h1 { "Messages" }
        (search(&admin, &asked))
        @if let Some(wrong) = wrong { p.notice.bad role="alert" { (wrong) } }
        @if let Some(found) = &found { (results(found, &asked, session.is_operator(), session.zone)) }
    };
    Ok((status, page(&session, Section::Messages, "Messages", &body)).into_response())
}

fn search(admin: &Admin, asked: &Asked) -> Markup {
    let statuses: Vec<&str> = Status::ALL.iter().map(|status| status.name()).collect();
    let all = admin.catalogue.all_active();
    let templates: Vec<&str> = all.iter().map(|template| template.key()).collect();
    html! {
        form.card.filter method="get" action="/messages" role="search" {
            (recipient_field(asked.to.as_deref()))
            (choice("status", "Status", asked.status.as_deref(), &statuses))
            (choice("template", "Template", asked.template.as_deref(), &templates))
            (field("source", "Source", "text", asked.source.as_deref(), "billing"))
            (field("since", "Since", "date", asked.since.as_deref(), ""))
            (field("until", "Before", "date", asked.until.as_deref(), ""))
            (field("request_id", "Request", "text", asked.request_id.as_deref(), "UUID"))
            div.row { button type="submit" { "Search" } a.button.quiet href="/messages" { "Clear" } }
        }
    }
}

fn results(found: &MessagePage, asked: &Asked, personal: bool, zone: Tz) -> Markup {
    html! {
        section.card aria-label="Mails" {
            (layout::found(&total(found.total, found.total_is_exact, "mail", "mails"), found.searched_since, zone))
            @if found.items.is_empty() { p { "No mail is like that." } }
            @else {
                table.stack {
                    thead { tr { th { "Published" } th { "To" } th { "Subject" } th { "Template" } th { "Status" } th { "Why" } } }
                    tbody { @for mail in &found.items { (line(mail, personal, zone)) } }
                }
            }
            (further("/messages", &asked.pairs(), found.next.map(|id| id.to_string()).as_deref()))
        }
    }
}

fn line(mail: &MessageSummary, personal: bool, zone: Tz) -> Markup {
    let path = format!("/messages/{}", mail.id);
    html! {
        tr {
            td data-label="Published" { a href=(path) { (time(mail.created_at, zone)) } }
            td.break data-label="To" { (mail.to.as_deref().map_or("–".to_owned(), |to| address_for(personal, to))) }
            td.break data-label="Subject" { (mail.subject.as_deref().filter(|_| personal).unwrap_or("–")) }
            td.break data-label="Template" { (mail.template_key) @if let Some(version) = mail.template_version { " v" (version) } }
            td data-label="Status" { (badge(&mail.status)) }
            td.break data-label="Why" { (why(mail.reason.as_deref(), mail.bounce_type.as_deref(), mail.bounce_subtype.as_deref(), mail.complaint_type.as_deref())) }
        }
    }
}

fn why(reason: Option<&str>, bounce: Option<&str>, subtype: Option<&str>, complaint: Option<&str>) -> String {
    let of_bounce =
        bounce.map(|kind| format!("{kind} bounce{}", subtype.map(|s| format!(": {s}")).unwrap_or_default()));
    let of_complaint = complaint.map(|kind| format!("complaint: {kind}"));
    of_complaint.or(of_bounce).or(reason.map(str::to_owned)).unwrap_or_default()
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let id = params::uuid("id", &id)?;
    let message = admin.store.message(id).await?.ok_or_else(unknown)?;
    let personal = session.is_operator();
    if personal {
        admin.store.record_view(&session.operator.by(), Viewed::Details(id)).await?;
    }
    let views = admin.store.views_of(id, LIMIT).await?;
    let repeats = admin.store.retransmissions_of(id).await?;
    let again = retransmission::plan(&admin.store, id).await?;
    let zone = session.zone;
    let title = message.detail.subject.as_deref().filter(|_| personal).unwrap_or("A mail");
    let body = html! {
        h1 { (title) " " (badge(&message.detail.status)) @if message.detail.held { " " (badge("held")) } }
        div.grid.uneven {
            (facts(&message.detail, personal, zone))
            (timeline(&message.timeline, personal, zone))
        }
        @if personal { (content(&message)) }
        @else { p.notice { "What the mail says, and to whom, is shown to the role operator." } }
        (attachments(&message, personal))
        (repeating(&session, id, again.as_ref(), &repeats))
        (looked(&views, zone))
    };
    Ok(page(&session, Section::Messages, title, &body))
}

fn facts(mail: &MessageDetail, personal: bool, zone: Tz) -> Markup {
    let request = format!("/messages?request_id={}", mail.request_id);
    html! {
        section.card aria-labelledby="facts" {
            h2 #facts { "The mail" }
            dl.facts {
                dt { "To" }
                dd {
                    (mail.to.as_deref().map_or("removed".to_owned(), |to| address_for(personal, to)))
                    @if let Some(name) = mail.name.as_deref().filter(|_| personal) { " (" (name) ")" }
                }
                @if let Some(to) = mail.to.as_deref().filter(|_| personal) {
                    dt { "Others to them" } dd { a href=(layout::link("/messages", &[("to", Some(to))], None)) { "all mails to this recipient" } }
                }
                dt { "Template" } dd { a href=(format!("/templates/{}", mail.template_key)) { (mail.template_key) }
                    @if let Some(version) = mail.template_version { " version " (version) } }
                dt { "Source" } dd { (mail.source) ", " (mail.lane) " lane, P" (mail.priority) }
                dt { "Published" } dd { (time(mail.published_at, zone)) }
                @if let Some(at) = mail.not_before { dt { "Not before" } dd { (time(at, zone)) } }
                @if let Some(at) = mail.expires_at { dt { "Expires" } dd { (time(at, zone)) } }
                @if let Some(at) = mail.due_at { dt { "Next try" } dd { (time(at, zone)) } }
                dt { "Accepted" } dd { (time_or_dash(mail.sent_at, zone)) }
                dt { "Delivered" } dd { (time_or_dash(mail.delivered_at, zone)) }
                @if let Some(at) = mail.bounced_at { dt { "Bounced" } dd { (time(at, zone)) " "
                    (why(None, mail.bounce_type.as_deref(), mail.bounce_subtype.as_deref(), None)) } }
                @if let Some(at) = mail.complained_at { dt { "Complaint" } dd { (time(at, zone)) " " (mail.complaint_type.as_deref().unwrap_or_default()) } }
                @if let Some(reason) = &mail.reason { dt { "Reason" } dd { (reason) } }
                @if let Some(error) = mail.error.as_deref().filter(|_| personal) { dt { "Error" } dd { (error) } }
                dt { "Attempts" } dd { (mail.attempts) @if mail.generation > 0 { ", replayed " (mail.generation) " times" } }
                @if let Some(of) = mail.retransmission_of { dt { "Repeats" } dd { a href=(format!("/messages/{of}")) { "an earlier mail" } } }
                dt { "Request" } dd { a.mono href=(request) { (mail.request_id) } }
                dt { "Message-ID" } dd.mono { (mail.message_id) }
            }
        }
    }
}

fn timeline(lines: &[MessageEvent], personal: bool, zone: Tz) -> Markup {
    html! {
        section.card aria-labelledby="timeline" {
            h2 #timeline { "What happened" }
            @if lines.is_empty() { p { "Nothing yet." } }
            @else {
                table.stack {
                    thead { tr { th { "When" } th { "What" } th { "Relay" } th { "Its words" } } }
                    tbody {
                        @for line in lines {
                            tr {
                                td data-label="When" { (time(line.at, zone)) }
                                td data-label="What" { (badge(&line.kind))
                                    @if line.attempt > 0 { span.muted { " try " (line.attempt) } }
                                    @if let Some(ms) = line.latency_ms { div.muted { (layout::thousands(ms)) " ms after publishing" } } }
                                td.break data-label="Relay" { (line.relay.as_deref().unwrap_or("–")) @if let Some(phase) = &line.phase { div.muted { "at " (phase) } } }
                                td.break data-label="Its words" {
                                    @if let Some(code) = line.reply_code { (code) " " }
                                    @if personal { (line.reply_text.as_deref().or(line.error.as_deref()).unwrap_or_default()) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn content(message: &Message) -> Markup {
    let mail = &message.detail;
    let source = |part: &str| format!("/messages/{}/mail?part={part}", mail.id);
    html! {
        @if mail.html_bytes.is_some() {
            section.card aria-labelledby="mail" {
                h2 #mail { "The mail as it was" }
                iframe.mail sandbox="" loading="lazy" title="The HTML part" src=(source("html")) {}
            }
        }
        @if mail.text_bytes.is_some() {
            section.card {
                details {
                    summary { "As text" }
                    iframe.mail sandbox="" loading="lazy" title="The text part" src=(source("text")) {}
                }
            }
        }
        @if let Some(variables) = &mail.variables {
            section.card {
                details {
                    summary { "Variables and metadata" }
                    pre tabindex="0" { (serde_json::to_string_pretty(variables).unwrap_or_default()) }
                    pre tabindex="0" { (serde_json::to_string_pretty(&mail.metadata).unwrap_or_default()) }
                }
            }
        }
    }
}

fn attachments(message: &Message, personal: bool) -> Markup {
    if message.attachments.is_empty() {
        return html! {};
    }
    html! {
        section.card aria-labelledby="attachments" {
            h2 #attachments { "Attachments" }
            table.stack {
                thead { tr { th { "Name" } th { "Type" } th { "Bytes" } th { "SHA-256" } } }
                tbody {
                    @for file in &message.attachments {
                        tr {
                            td.break data-label="Name" { (if personal { file.filename.as_str() } else { "–" }) }
                            td data-label="Type" { (file.content_type) }
                            td data-label="Bytes" { (layout::thousands(file.size_bytes.into())) }
                            td.break.mono data-label="SHA-256" { (hex::encode(&file.sha256)) }
                        }
                    }
                }
            }
        }
    }
}

/// Sending it again. The form's key makes one request of it, however often it is pressed.
fn repeating(session: &Session, id: Uuid, again: Option<&Result<(), Refusal>>, repeats: &[Retransmission]) -> Markup {
    html! {
        section.card aria-labelledby="again" {
            h2 #again { "Send it again" }
            @match again {
                Some(Ok(())) if session.is_operator() => {
                    form.row method="post" action=(format!("/messages/{id}/resend")) data-confirm="Send this mail to its recipient once more?" {
                        (csrf(session))
                        input type="hidden" name="key" value=(Uuid::new_v4());
                        p { "A new mail with the words and the files of this one, to the same recipient." }
                        button type="submit" { "Send again" }
                    }
                }
                Some(Ok(())) => { p { "The role operator may send it again." } }
                Some(Err(refusal)) => { p { "It cannot be sent again: " (refusal.to_string()) "." } }
                None => {}
            }
            @if !repeats.is_empty() {
                ul {
                    @for repeat in repeats {
                        li { (time(repeat.at, session.zone)) " by " (repeat.asked_by) ": "
                            a href=(format!("/messages?request_id={}", repeat.request_id)) { "the mail" }
                            @if !repeat.is_published { " (a daemon publishes it as soon as it can)" } }
                    }
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Again {
    key: Option<String>,
}

pub(super) async fn resend(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    posted: Posted<Again>,
) -> Result<Redirect, PageError> {
    if !posted.session.is_operator() {
        return Err(needs_operator().into());
    }
    let id = params::uuid("id", &id)?;
    let (request, _) = resend_as(&admin, &posted.session.operator, id, posted.form.key.as_deref()).await?;
    Ok(Redirect::to(&format!("/messages?request_id={}", request.request_id)))
}

fn looked(views: &[View], zone: Tz) -> Markup {
    html! {
        section.card {
            details {
                summary { "Who looked at it" }
                @if views.is_empty() { p { "Nobody yet." } }
                ul { @for view in views { li { (time(view.at, zone)) ": " (view.viewed_by) ", " (view.what) } } }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Part {
    part: Option<String>,
}

/// A part in a document of its own, which runs nothing.
pub(super) async fn mail(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(id): Path<String>,
    Query(Part { part }): Query<Part>,
) -> Result<Response, PageError> {
    if !session.is_operator() {
        return Err(needs_operator().into());
    }
    let id = params::uuid("id", &id)?;
    let part = part.as_deref().and_then(BodyPart::from_name).unwrap_or(BodyPart::Html);
    let body = admin.store.message_body(id, part).await?.ok_or_else(unknown)?;
    admin.store.record_view(&session.operator.by(), Viewed::Body(id, part)).await?;
    Ok(mail_document(match part {
        BodyPart::Html => body,
        BodyPart::Text => {
            html! { (maud::DOCTYPE) html lang="en" { head { title { "Text part" } } body { pre { (body) } } } }
                .into_string()
        }
    }))
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such mail, or what it said was removed")
}
