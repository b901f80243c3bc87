//! The pages of unsubscribing, in French: small, without a script, and without anything from elsewhere.
//!
//! The hyphen in "e‑mail" is one that no line breaks at, and so are the blanks before `:` and `?`.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::unsubscribe::Desk;

const STYLE: &str = include_str!("page.css");
/// The one style sheet by its digest; forms go back where they came from; nothing else is loaded, run or framed.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action 'self'; frame-ancestors 'none'; \
         base-uri 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

/// A page with what keeps it to itself.
pub(super) fn answer(status: StatusCode, page: &Markup) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::HeaderName::from_static("x-robots-tag"), HeaderValue::from_static("noindex, nofollow")),
    ];
    (status, headers, Html(page.0.clone())).into_response()
}

fn frame(desk: &Desk, title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="fr" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex, nofollow";
                meta name="referrer" content="no-referrer";
                title { (title) " – " (desk.sender) }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    p.sender { (desk.sender) }
                    h1 { (title) }
                    (content)
                }
            }
        }
    }
}

/// Whether it is meant.
pub(super) fn ask(desk: &Desk, category: Option<&str>) -> Markup {
    let content = html! {
        @match category {
            Some(category) => {
                p { "Vous recevez de notre part des " strong { (words(category)) } ". Vous pouvez y mettre fin ici, avec effet immédiat." }
                (button("category", "primary", &format!("Me désabonner des {}", words(category))))
                p.or { "ou" }
                (button("all", "secondary", "Ne plus recevoir aucun e‑mail promotionnel"))
            }
            None => {
                p { "Vous recevez de notre part des e‑mails promotionnels. Vous pouvez y mettre fin ici, avec effet immédiat." }
                (button("all", "primary", "Ne plus recevoir aucun e‑mail promotionnel"))
            }
        }
        (stays())
    };
    frame(desk, "Se désabonner", &content)
}

/// It is done.
pub(super) fn done(desk: &Desk, category: Option<&str>) -> Markup {
    let content = html! {
        p role="status" {
            "Vous ne recevrez plus "
            @match category {
                Some(category) => { "les " strong { (words(category)) } " de notre part." }
                None => { strong { "aucun e‑mail promotionnel" } " de notre part." }
            }
            " Un e‑mail déjà en route peut encore vous parvenir."
        }
        @if category.is_some() {
            (button("all", "secondary", "Ne plus recevoir aucun e‑mail promotionnel"))
        }
        (stays())
        @if let Some(contact) = &desk.contact {
            p.note { "Vous avez changé d’avis ? Écrivez à " a href=(format!("mailto:{contact}")) { (contact) } "." }
        }
    };
    frame(desk, "C’est fait", &content)
}

/// The link is none of ours.
pub(super) fn no_link(desk: &Desk) -> Markup {
    let content = html! {
        p { "Il est peut-être incomplet : ouvrez-le de nouveau depuis l’e‑mail, sans le recopier." }
        (contact(desk))
    };
    frame(desk, "Ce lien n’est pas valable", &content)
}

/// What was sent says nothing that we know.
pub(super) fn no_choice(desk: &Desk) -> Markup {
    let content = html! {
        p { "Rien n’a été changé. Ouvrez de nouveau le lien de l’e‑mail et confirmez avec le bouton." }
        (contact(desk))
    };
    frame(desk, "Demande incomplète", &content)
}

/// Not now.
pub(super) fn later(desk: &Desk) -> Markup {
    let content = html! {
        p role="alert" { "Votre demande n’a pas pu être enregistrée : notre service est momentanément indisponible. Réessayez dans quelques minutes." }
        (contact(desk))
    };
    frame(desk, "Un instant", &content)
}

fn contact(desk: &Desk) -> Markup {
    html! {
        @if let Some(contact) = &desk.contact {
            p.note { "Besoin d’aide ? Écrivez à " a href=(format!("mailto:{contact}")) { (contact) } "." }
        }
    }
}

fn stays() -> Markup {
    html! { p.note { "Les e‑mails liés à votre compte (factures, incidents, demandes en cours) continueront de vous parvenir." } }
}

/// A form of one button: it goes to the address that the page has.
fn button(scope: &str, class: &str, words: &str) -> Markup {
    html! {
        form method="post" {
            input type="hidden" name="scope" value=(scope);
            button.(class) type="submit" { (words) }
        }
    }
}

/// What a category's mails are, in a plural that follows "des" and "les".
fn words(category: &str) -> String {
    match category {
        "marketing" => "annonces commerciales".to_owned(),
        "billing" => "informations sur la facturation".to_owned(),
        "incident" => "informations sur les incidents".to_owned(),
        "onboarding" => "conseils de mise en service".to_owned(),
        "cutover" => "rappels de bascule".to_owned(),
        "rma" => "informations sur les retours de matériel".to_owned(),
        "sla" => "rapports de qualité de service".to_owned(),
        "support" => "informations de l’assistance".to_owned(),
        other => format!("e‑mails de la catégorie « {other} »"),
    }
}
