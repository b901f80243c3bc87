//! Templates in a browser: written, looked at, activated, rolled back, and harmless to whoever writes them.

use reqwest::{Method, StatusCode, header::CONTENT_SECURITY_POLICY};
use serde_json::json;

use crate::support::{
    browser::Browser,
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    pages::Visitor,
    requests::{templates, ticket},
    wait::until,
};

const TICKET: &str = "/templates/support_ticket_created";
const API: &str = "/api/v1/email/templates/support_ticket_created";

/// The fields of the editor, as a browser sends them; without its variants where a change is about locales.
pub(crate) fn written(change: &[(&str, &str)]) -> Vec<(String, String)> {
    let source = templates().iter().find(|template| template.key == "support_ticket_created").expect("it is there");
    let lines = |text: &str| text.replace('\n', "\r\n");
    let mut fields = vec![
        ("manifest".to_owned(), lines(&source.manifest_toml)),
        ("subject".to_owned(), lines(&source.subject)),
        ("html_content".to_owned(), lines(&source.html)),
        ("text_content".to_owned(), lines(&source.text)),
        ("sample".to_owned(), serde_json::to_string_pretty(&source.sample).expect("JSON")),
        ("expected_active".to_owned(), "1".to_owned()),
    ];
    for (prefix, partials) in [("html/", &source.partials_html), ("text/", &source.partials_text)] {
        fields.extend(partials.iter().map(|(name, text)| (format!("{prefix}{name}"), lines(text))));
    }
    if !change.iter().any(|(name, _)| name.ends_with("_locale")) {
        for (locale, variant) in &source.variants {
            let begin = format!("variant/{locale}/");
            let plain =
                [("subject", &variant.subject), ("html_content", &variant.html), ("text_content", &variant.text)];
            fields.extend(plain.map(|(name, text)| (format!("{begin}{name}"), lines(text))));
            for (prefix, partials) in [("html/", &variant.partials_html), ("text/", &variant.partials_text)] {
                fields.extend(partials.iter().map(|(name, text)| (format!("{begin}{prefix}{name}"), lines(text))));
            }
        }
    }
    for (name, text) in change {
        fields.retain(|(known, _)| known != name);
        fields.push(((*name).to_owned(), (*text).to_owned()));
    }
    fields
}

/// Variables of a ticket.
const TRIED: &str = r#"{"ticket_number": "7", "title": "t", "priority": "P1", "support_link": "https://a.bj"}"#;

fn borrowed(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
}

async fn edit(visitor: &Visitor, change: &[(&str, &str)]) -> reqwest::Response {
    visitor.post(&format!("{TICKET}/edit"), &borrowed(&written(change))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_mended_without_a_script() {
    let post = Installation::start().await;
    let admin = Visitor::sign_in(post.daemon(), ADMIN_TOKEN).await;
    let list = admin.page("/templates").await;
    assert!(templates().iter().all(|template| list.contains(&template.key)), "{list}");
    let editor = admin.page(&format!("{TICKET}/edit")).await;
    assert!(editor.contains("Ticket support #4821") && editor.contains("Votre ticket support a été créé"), "{editor}");

    // What was not changed is no new version, whatever the browser made of the lines.
    assert_eq!(edit(&admin, &[("do", "activate")]).await.status(), StatusCode::SEE_OTHER);
    let (_, versions) = post.daemon().get(&format!("{API}/versions"), VIEWER_TOKEN).await;
    assert_eq!(versions["total"], 1);

    let checked = edit(&admin, &[("do", "check"), ("subject", "Corrigé {{ticket_number}}")]).await;
    assert_eq!(checked.status(), StatusCode::OK);
    let checked = checked.text().await.expect("text");
    assert!(checked.contains("Corrigé 4821") && checked.contains("Corrigé {{ticket_number}}"), "{checked}");
    for (change, want) in [
        ([("do", "draft"), ("subject", "{{nobody}}")], "nobody"),
        ([("do", "draft"), ("sample", "{")], "sample: it is no JSON object"),
        ([("do", "activate"), ("html_content", "{{#if title}}")], "html.hbs"),
    ] {
        let refused = edit(&admin, &change).await;
        assert!(refused.status().is_client_error(), "{change:?}");
        let refused = refused.text().await.expect("text");
        assert!(refused.contains(want) && refused.contains(change[1].1), "what was written is still there: {refused}");
    }
    let saved = edit(&admin, &[("do", "activate"), ("subject", "Corrigé {{ticket_number}}")]).await;
    assert_eq!(saved.status(), StatusCode::SEE_OTHER);
    let overtaken = edit(&admin, &[("do", "activate"), ("subject", "Trop tard {{ticket_number}}")]).await;
    assert_eq!(overtaken.status(), StatusCode::CONFLICT);
    let overtaken = overtaken.text().await.expect("text");
    assert!(overtaken.contains("version 2 is active now") && overtaken.contains("Trop tard"), "{overtaken}");

    let shown = admin.page(TICKET).await;
    assert!(shown.contains("Version 2") && shown.contains("former"), "{shown}");
    let difference = admin.page(&format!("{TICKET}/diff?from=1&to=2")).await;
    assert!(difference.contains("<span class=\"ins\">+Corrigé {{ticket_number}}"), "{difference}");
    post.publish(&ticket("a@example.bj")).await;
    assert_eq!(post.mails(1).await[0].subject, "Corrigé 4821");

    assert_eq!(admin.submit(&format!("{TICKET}/rollback"), &[("expected_active", "2")]).await, TICKET);
    let sample = serde_json::to_string(&templates()[0].sample).expect("JSON");
    let wrong = [("to", "me@example.bj"), ("version", "2"), ("variables", sample.as_str())];
    assert_eq!(admin.post(&format!("{TICKET}/test"), &wrong).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let variables =
        json!({"ticket_number": "7", "title": "t", "priority": "P1", "support_link": "https://a.bj"}).to_string();
    let right = [("to", "me@example.bj"), ("version", "2"), ("variables", variables.as_str())];
    let leads = admin.submit(&format!("{TICKET}/test"), &right).await;
    assert!(admin.page(&leads).await.contains("A test mail is on its way"));
    assert_eq!(post.mails(2).await[1].subject, "Corrigé 7");
    assert_eq!(admin.submit(&format!("{TICKET}/deactivate"), &[("expected_active", "1")]).await, TICKET);
    assert!(admin.page(TICKET).await.contains("No version is active"));
    let again = [("version", "2"), ("expected_active", "0")];
    assert_eq!(admin.submit(&format!("{TICKET}/activate"), &again).await, TICKET);

    let leads = admin.look("/templates/new?key=coupon_offer&like=support_ticket_created").await;
    let to = leads.headers()["location"].to_str().expect("text").to_owned();
    assert!(admin.page(&to).await.contains("Edit coupon_offer"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_look_tries_out_and_changes_nothing() {
    let post = Installation::start().await;
    for token in [VIEWER_TOKEN, OPERATOR_TOKEN] {
        let visitor = Visitor::sign_in(post.daemon(), token).await;
        let editor = visitor.page(&format!("{TICKET}/edit")).await;
        assert!(!editor.contains("Save and activate"), "{editor}");
        assert_eq!(edit(&visitor, &[("do", "check")]).await.status(), StatusCode::OK);
        for action in ["activate", "draft"] {
            let refused = edit(&visitor, &[("do", action), ("subject", "x {{ticket_number}}")]).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        }
        for path in ["activate", "rollback", "deactivate"] {
            let fields = [("version", "1"), ("expected_active", "1")];
            let refused = visitor.post(&format!("{TICKET}/{path}"), &fields).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{path}");
        }
    }
    let viewer = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    let fields = [("to", "a@example.bj"), ("version", "1"), ("variables", "{}")];
    assert_eq!(viewer.post(&format!("{TICKET}/test"), &fields).await.status(), StatusCode::FORBIDDEN);
    // A form without the session's word, or from another site.
    let admin = Visitor::sign_in(post.daemon(), ADMIN_TOKEN).await;
    for path in ["edit", "activate", "rollback", "deactivate", "test", "frame"] {
        let path = format!("{TICKET}/{path}");
        let fields = [("version", "1"), ("expected_active", "1"), ("do", "draft"), ("csrf", "made up")];
        let answer = admin.send(Method::POST, &path).form(&fields).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        let csrf = admin.csrf().await;
        let fields = [("version", "1"), ("expected_active", "1"), ("do", "draft"), ("csrf", csrf.as_str())];
        let foreign = admin.send(Method::POST, &path).header("sec-fetch-site", "cross-site").form(&fields);
        assert_eq!(foreign.send().await.expect("an answer").status(), StatusCode::FORBIDDEN, "{path}");
    }
    let (_, versions) = post.daemon().get(&format!("{API}/versions"), VIEWER_TOKEN).await;
    assert_eq!((&versions["total"], &versions["items"][0]["state"]), (&json!(1), &json!("active")));
    let framed = admin.look(&format!("{TICKET}/frame?version=1&part=html")).await;
    let policy = framed.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
    assert!(policy.starts_with("sandbox;") && policy.contains("default-src 'none'"), "{policy}");
    assert!(framed.text().await.expect("text").contains("4821"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_language_is_added_in_the_editor() {
    let post = Installation::start().await;
    let admin = Visitor::sign_in(post.daemon(), ADMIN_TOKEN).await;
    let fields: Vec<_> = written(&[("do", "add-locale"), ("new_locale", " de ")]);
    let begun = admin.post(&format!("{TICKET}/edit"), &borrowed(&fields)).await.text().await.expect("text");
    assert!(begun.contains("name=\"variant/de/subject\"") && begun.contains("variant/de/html/layout"), "{begun}");
    assert!(!begun.contains("variant/en/"), "only what stood in the form");

    // What the browser would send now, with the subject translated.
    let mut fields = written(&[("do", "activate"), ("shown_locale", "de")]);
    let of = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, text)| text.clone());
    let mut german = vec![("variant/de/subject".to_owned(), "Ticket #{{ticket_number}} angelegt".to_owned())];
    for name in ["html_content", "text_content"] {
        german.push((format!("variant/de/{name}"), of(name).expect("it is there")));
    }
    let partials = fields.iter().filter(|(name, _)| name.starts_with("html/") || name.starts_with("text/"));
    german.extend(partials.map(|(name, text)| (format!("variant/de/{name}"), text.clone())));
    fields.extend(german);
    let shown = admin.post(&format!("{TICKET}/frame?part=html"), &borrowed(&fields)).await.text().await.expect("text");
    assert!(shown.contains("<html lang=\"de\""), "{shown}");
    assert_eq!(admin.post(&format!("{TICKET}/edit"), &borrowed(&fields)).await.status(), StatusCode::SEE_OTHER);
    let page = admin.page(TICKET).await;
    assert!(page.contains("fr, de") && page.contains("<option value=\"de\""), "{page}");
    let tried = [("to", "me@example.bj"), ("version", "2"), ("locale", "de"), ("variables", TRIED)];
    admin.submit(&format!("{TICKET}/test"), &tried).await;
    assert_eq!(post.mails(1).await[0].subject, "Ticket #7 angelegt");

    fields.retain(|(name, _)| name != "do");
    fields.push(("do".to_owned(), "remove-locale/de".to_owned()));
    let removed = admin.post(&format!("{TICKET}/edit"), &borrowed(&fields)).await.text().await.expect("text");
    assert!(!removed.contains("variant/de/"), "{removed}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_browser_a_template_is_edited_previewed_activated_and_rolled_back() {
    let post = Installation::start().await;
    let browser = Browser::start(post.daemon()).await;
    browser.sign_in(ADMIN_TOKEN).await;
    browser.open("/templates").await;
    browser.shows("support_ticket_created").await;
    browser.inspect("templates").await;
    browser.open(TICKET).await;
    browser.shows("Versions").await;
    browser.inspect("template").await;
    browser.open(&format!("{TICKET}/edit")).await;
    browser.shows("Ticket support #4821").await;
    browser.inspect("template-editor").await;

    // The previews follow the writing, and what is written in it does not run.
    browser.fill("textarea[name=subject]", "Essai {{ticket_number}}").await;
    browser.shows("Essai 4821").await;
    let hostile = "<!DOCTYPE html><html lang=fr><head><title>t</title></head><body><p>harmless {{ticket_number}} {{title}} \
        {{priority}} <a href=\"{{url support_link}}\">l</a></p>\
        <script>document.title='run';top.document.title='run'</script><img src=x onerror=\"top.document.title='run'\"></body></html>";
    browser.fill("textarea[name=html_content]", hostile).await;
    for (frame, words) in [(0, "harmless 4821"), (1, "harmless 4821"), (2, "#4821")] {
        // It is made anew while somebody writes.
        until("the frame shows what was written", async || {
            let shown = match browser.client.enter_frame(frame).await {
                Ok(()) => browser.client.source().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            browser.client.enter_parent_frame().await.expect("the page");
            shown.contains(words)
        })
        .await;
    }
    let title = browser.client.title().await.expect("a title");
    assert!(title.starts_with("Edit "), "{title}");
    assert_eq!(browser.path().await, format!("{TICKET}/edit"));
    // What the policy refused was refused in the frames.
    browser.complaints().await;

    browser.open(&format!("{TICKET}/edit")).await;
    browser.fill("textarea[name=subject]", "Essai {{ticket_number}}").await;
    browser.click("button[value=check]").await;
    browser.shows("no recent request").await;
    browser.inspect("template-checked").await;
    browser.click("button[value=activate]").await;
    browser.arrives_at(TICKET).await;
    browser.shows("Version 2").await;
    post.publish(&ticket("a@example.bj")).await;
    assert_eq!(post.mails(1).await[0].subject, "Essai 4821");
    browser.open(&format!("{TICKET}/diff?from=1&to=2")).await;
    browser.shows("+Essai {{ticket_number}}").await;
    browser.inspect("template-difference").await;
    browser.open(TICKET).await;
    browser.click("form[action$='/rollback'] button").await;
    browser.client.accept_alert().await.expect("it asks first");
    until("it is rolled back", async || post.daemon().get(API, VIEWER_TOKEN).await.1["version_in_use"] == 1).await;
    browser.close().await;
    post.finish().await;
}
