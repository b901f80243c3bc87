//! What all pages share: the frame, and small parts.

use axum::{
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use maud::{DOCTYPE, Markup, html};

use super::{
    assets,
    session::{CSRF_FIELD, Session},
};
use crate::{email::cap::first_moment, http::problem::Problem};

/// Where a page belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Overview,
    Messages,
    Templates,
    DeadLetters,
    Replays,
    Suppressions,
    Feedback,
    Changes,
}

impl Section {
    const ALL: [Self; 8] = [
        Self::Overview,
        Self::Messages,
        Self::Templates,
        Self::DeadLetters,
        Self::Replays,
        Self::Suppressions,
        Self::Feedback,
        Self::Changes,
    ];

    /// Its name, its address, and the key that leads there after `g`.
    const fn shown(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Overview => ("Overview", "/", "o"),
            Self::Messages => ("Messages", "/messages", "m"),
            Self::Templates => ("Templates", "/templates", "t"),
            Self::DeadLetters => ("Dead letters", "/dead-letters", "d"),
            Self::Replays => ("Replays", "/replays", "r"),
            Self::Suppressions => ("Suppressions", "/suppressions", "s"),
            Self::Feedback => ("Feedback", "/feedback", "f"),
            Self::Changes => ("Changes", "/changes", "c"),
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · postrider" }
            link rel="icon" href=(assets::ICON.path());
            link rel="stylesheet" href=(assets::STYLE.path());
            script src=(assets::SCRIPT.path()) defer {}
        }
    }
}

/// A page with its navigation.
pub(super) fn page(session: &Session, section: Section, title: &str, body: &Markup) -> Html<String> {
    Html(in_order(page_to_edit(session, section, title, body).0))
}

/// The same with what people wrote as it is, because they get it back by a form.
pub(super) fn page_to_edit(session: &Session, section: Section, title: &str, body: &Markup) -> Html<String> {
    let shown = html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/" { "postrider" }
                    nav aria-label="Sections" {
                        @for one in Section::ALL {
                            @let (name, path, key) = one.shown();
                            a href=(path) data-go=(key) aria-current=[(one == section).then_some("page")] { (name) }
                        }
                    }
                    form.who method="post" action="/sign-out" {
                        (csrf(session))
                        span.muted { (session.operator.name) " (" (session.operator.role.name()) ")" }
                        button.quiet type="submit" { "Sign out" }
                    }
                }
                main #main { (body) }
                footer.muted {
                    p { "Times in " (session.zone.name()) }
                    p.keys {
                        kbd { "/" } " search; " kbd { "g" } " and a letter:"
                        @for (name, _, key) in Section::ALL.map(Section::shown) { " " kbd { (key) } " " (name.to_lowercase()) }
                    }
                }
            }
        }
    };
    Html(shown.into_string())
}

/// A page of nobody's: signing in, and errors.
pub(super) fn bare(title: &str, body: &Markup) -> Html<String> {
    let shown = html! {
        (DOCTYPE)
        html lang="en" { (head(title)) body { main #main { (body) } } }
    };
    Html(in_order(shown.into_string()))
}

/// Shows what would turn the text around it (Unicode's embeddings, overrides and isolates) by name: with one of these, a mail could
/// make an address or a note of others read as something else. Scripts that run from right to left need none of them.
fn in_order(html: String) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !html.contains(turns) {
        return html;
    }
    html.chars().fold(String::with_capacity(html.len()), |mut shown, c| {
        if turns(c) {
            shown.push_str(&format!("[U+{:04X}]", u32::from(c)));
        } else {
            shown.push(c);
        }
        shown
    })
}

/// An error, for people.
pub(super) struct PageError(Problem);

impl<T: Into<Problem>> From<T> for PageError {
    fn from(error: T) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (status, detail) = (self.0.status(), self.0.detail());
        let title = status.canonical_reason().unwrap_or("Error");
        let body = html! {
            div.card {
                h1 { (title) }
                p { (detail) }
                p { a href="/" { "To the overview" } }
            }
        };
        (status, bare(title, &body)).into_response()
    }
}

/// The field that makes a form one of this session's.
pub(super) fn csrf(session: &Session) -> Markup {
    html! { input type="hidden" name=(CSRF_FIELD) value=(session.csrf()); }
}

/// A moment in the operators' time.
pub(super) fn time(at: DateTime<Utc>, zone: Tz) -> Markup {
    let shown = at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S");
    html! { time datetime=(at.to_rfc3339()) title=(format!("{} ({})", at.to_rfc3339(), zone.name())) { (shown) } }
}

/// A moment, if it has come.
pub(super) fn time_or_dash(at: Option<DateTime<Utc>>, zone: Tz) -> Markup {
    at.map_or_else(|| html! { span.muted { "–" } }, |at| time(at, zone))
}

/// A word that says how something stands, coloured by whether that is good.
pub(super) fn badge(word: &str) -> Markup {
    let tone = match word {
        "sent" | "delivered" | "active" | "done" | "consuming" | "up" | "replayed" | "published" => "good",
        "failed" | "bounced" | "complaint" | "rejected" | "lost" | "down" | "cancelled" | "fault" => "bad",
        "unknown" | "held" | "waiting" | "paused" | "deferred" | "running" | "replaying" | "sending" | "draft"
        | "risk" => "warn",
        _ => "plain",
    };
    html! { span.badge.(tone) { (word) } }
}

/// How many there are, in words.
pub(super) fn total(total: i64, is_exact: bool, one: &str, many: &str) -> String {
    match (total, is_exact) {
        (1, true) => format!("1 {one}"),
        (n, true) => format!("{} {many}", thousands(n)),
        (n, false) => format!("more than {} {many}", thousands(n)),
    }
}

/// What stands above the lines of a search: how many there are, and how far back it looked where that was not all.
pub(super) fn found(how_many: &str, searched_since: Option<DateTime<Utc>>, zone: Tz) -> Markup {
    html! {
        p.muted {
            (how_many) ", newest first"
            @if let Some(since) = searched_since {
                ". Looked back to " (time(since, zone)) " for this page; the next one goes on from there."
            }
        }
    }
}

/// A whole number with thin gaps.
pub(super) fn thousands(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::from(if n < 0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// The way to the next page of a list: the same question, further on.
pub(super) fn further(path: &str, asked: &[(&str, Option<&str>)], next: Option<&str>) -> Markup {
    let Some(next) = next else { return html! {} };
    html! { nav.pager aria-label="Pages" { a.button rel="next" href=(link(path, asked, Some(next))) { "Next page" } } }
}

/// An address with what is asked for in it.
pub(super) fn link(path: &str, asked: &[(&str, Option<&str>)], cursor: Option<&str>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let given = asked.iter().filter_map(|(name, value)| Some((*name, value.filter(|value| !value.is_empty())?)));
    query.extend_pairs(given.chain(cursor.map(|cursor| ("cursor", cursor))));
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A labelled choice out of a closed list; the empty one is "any".
pub(super) fn choice(name: &str, label: &str, chosen: Option<&str>, all: &[&str]) -> Markup {
    html! {
        label { (label)
            select name=(name) {
                option value="" { "any" }
                @for one in all { option value=(one) selected[chosen == Some(*one)] { (one) } }
            }
        }
    }
}

/// A labelled field.
pub(super) fn field(name: &str, label: &str, kind: &str, value: Option<&str>, hint: &str) -> Markup {
    html! {
        label { (label) input type=(kind) name=(name) value=[value] placeholder=[Some(hint).filter(|hint| !hint.is_empty())]; }
    }
}

/// The field of a search that takes an address.
pub(super) fn recipient_field(to: Option<&str>) -> Markup {
    html! {
        label.wide { "Recipient"
            input type="search" name="to" value=[to] placeholder="name@example.com" data-search
                autocapitalize="none" autocomplete="off" spellcheck="false";
        }
    }
}

/// What was written into a field; forms send what was left empty as well.
pub(super) fn given(text: &Option<String>) -> Option<String> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// When what was written begins: a day begins where operators are, as the times that pages show.
pub(super) fn moment(text: &Option<String>, zone: Tz) -> Option<String> {
    let text = given(text)?;
    Some(text.parse().map_or(text, |day| first_moment(day, zone).to_rfc3339()))
}

/// Who may not see it is told who may.
pub(super) fn needs_operator() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "this needs a token with the role operator")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_turns_the_text_around_it() {
        let shown = in_order("<p>ada\u{202e}jb.elpmaxe@\u{2069} \u{645}\u{631}\u{62d}\u{628}\u{627}</p>".to_owned());
        assert_eq!(shown, "<p>ada[U+202E]jb.elpmaxe@[U+2069] \u{645}\u{631}\u{62d}\u{628}\u{627}</p>");
    }

    #[test]
    fn a_day_begins_where_operators_are() {
        let moment = |text: &str| moment(&Some(text.to_owned()), chrono_tz::Africa::PortoNovo);
        assert_eq!(moment("2026-11-27").as_deref(), Some("2026-11-26T23:00:00+00:00"));
        for other in ["2026-11-27T18:00:00Z", "yesterday"] {
            assert_eq!(moment(other).as_deref(), Some(other));
        }
        assert_eq!(moment(" "), None);
    }

    #[test]
    fn numbers_and_links_are_readable() {
        assert_eq!(thousands(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(thousands(-999), "-999");
        assert_eq!(
            link("/a", &[("to", Some("a+b@example.bj")), ("status", None), ("x", Some(""))], None),
            "/a?to=a%2Bb%40example.bj"
        );
        assert_eq!(link("/a", &[], Some("n")), "/a?cursor=n");
        assert_eq!(total(1, true, "mail", "mails"), "1 mail");
    }
}
