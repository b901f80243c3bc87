//! Unsubscribing: one click or one page, at once and for good; never by a link that is merely followed, never by one that was
//! changed; and no marketing mail without it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN},
    installation::{Installation, PUBLIC_URL},
    mail::Mail,
    public::{ONE_CLICK, Public, link_in},
    requests::{sample, set, ticket},
};

const ADA: &str = "ada@example.bj";

/// One entry of the suppression list.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
struct Entry {
    address: Option<String>,
    reason: String,
    source: String,
    category: String,
}

async fn entries(post: &Installation) -> Vec<Entry> {
    sqlx::query_as("select address, reason, source, category from suppressions order by address, category")
        .fetch_all(&post.database.pool)
        .await
        .expect("the list")
}

fn entry(address: Option<&str>, source: &str, category: &str) -> Entry {
    Entry {
        address: address.map(str::to_owned),
        reason: "unsubscribe".to_owned(),
        source: source.to_owned(),
        category: category.to_owned(),
    }
}

/// With as much marketing as there is: caps are not at issue here.
async fn start() -> Installation {
    Installation::start_with(&[("EMAIL_RATE_LIMIT_MARKETING", "unlimited")]).await
}

/// Publishes marketing, and returns what became of its row.
async fn announce(post: &Installation, to: &str, status: &str) -> Uuid {
    let request = post.publish(&sample("reseller_announcement", &[to])).await;
    post.database.wait_for(request, status).await.remove(0).id
}

async fn kinds(post: &Installation, message: Uuid) -> Vec<String> {
    post.database.timeline(message).await.into_iter().map(|line| line.kind).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_recipient_of_marketing_has_a_link_of_their_own_and_the_audit_has_none() {
    let post = start().await;
    let to = [ADA, "grace@example.bj"];
    let request = post.publish(&sample("reseller_announcement", &to)).await;
    post.database.wait_for(request, "sent").await;
    let mut links = Vec::new();
    for mail in post.mails(2).await {
        let link = link_in(&mail);
        assert!(link.starts_with(&format!("{PUBLIC_URL}/api/v1/email/unsubscribe/")), "{link}");
        assert_eq!(mail.header("List-Unsubscribe-Post").as_deref(), Some("List-Unsubscribe=One-Click"));
        assert_eq!(mail.header("List-Id").as_deref(), Some("<marketing.rgz.bj>"));
        assert!(mail.html.contains(&format!("href=\"{link}\"")), "{}", mail.html);
        assert!(mail.text.contains(&link), "{}", mail.text);
        assert!(!mail.html.contains("unsubscribe.invalid") && !mail.text.contains("unsubscribe.invalid"));
        for hidden in to.iter().chain(&["ada", "grace"]) {
            assert!(!link.contains(hidden), "{link}");
        }
        links.push(link);
    }
    assert_ne!(links[0], links[1]);
    let recorded: Vec<(String, String)> = sqlx::query_as("select html_content, text_content from email_messages")
        .fetch_all(&post.database.pool)
        .await
        .expect("the audit");
    for (html, text) in recorded {
        assert!(html.contains("https://unsubscribe.invalid/") && text.contains("https://unsubscribe.invalid/"));
        assert!(links.iter().all(|link| !html.contains(link.as_str()) && !text.contains(link.as_str())));
    }
    // Nobody unsubscribes from what their own action or contract asks for.
    post.publish(&ticket(ADA)).await;
    let mail = post.mails(3).await.remove(2);
    for header in ["List-Unsubscribe", "List-Unsubscribe-Post", "List-Id"] {
        assert_eq!(mail.header(header), None);
    }
    assert!(!mail.html.contains("unsubscribe") && !mail.text.contains("abonner"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_click_in_either_form_stops_marketing_at_once_and_nothing_else() {
    let post = start().await;
    let public = Public::of(post.daemon());
    for (to, is_multipart) in [(ADA, false), ("grace@example.bj", true)] {
        let message = announce(&post, to, "sent").await;
        let mails = post.mails(1).await;
        let link = link_in(mails.iter().rfind(|mail| mail.envelope_to == to).expect("a mail"));
        // The same again changes nothing.
        for _ in 0..3 {
            let (status, _) =
                if is_multipart { public.post_multipart(&link).await } else { public.post(&link, ONE_CLICK).await };
            assert_eq!(status, StatusCode::OK);
        }
        assert!(entries(&post).await.contains(&entry(Some(to), "one-click", "marketing")));
        assert_eq!(kinds(&post, message).await, ["sent", "unsubscribed"], "told once");
        announce(&post, &to.to_uppercase(), "suppressed").await;
        let transactional = post.publish(&ticket(to)).await;
        post.database.wait_for(transactional, "sent").await;
    }
    assert_eq!(entries(&post).await.len(), 2);
    assert_eq!(post.daemon().metric("email_unsubscribed_total", &["source=\"one-click\""]).await, 6.0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_followed_or_garbled_unsubscribes_nobody() {
    let post = start().await;
    let public = Public::of(post.daemon());
    announce(&post, ADA, "sent").await;
    let link = link_in(&post.mails(1).await[0]);
    for method in [Method::GET, Method::HEAD] {
        let answer = public.ask(method, &link).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert!(header("content-security-policy").starts_with("default-src 'none';"));
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-store");
        assert!(header("x-robots-tag").contains("noindex"));
    }
    let (status, page) = public.get(&link).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("annonces commerciales") && page.contains("RGZ Notifications"), "{page}");
    assert!(!page.contains(ADA) && !page.contains("<script") && !page.contains("http"), "{page}");
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        assert_eq!(public.ask(method, &link).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    // A body that asks for nothing.
    for body in ["", "scope=", "List-Unsubscribe=Two-Clicks", "unsubscribe=One-Click"] {
        let (status, page) = public.post(&link, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(page.contains("Rien n’a été changé"), "{page}");
    }
    assert_eq!(public.post(&link, &"x".repeat(17 * 1024)).await.0, StatusCode::PAYLOAD_TOO_LARGE);

    let (stem, token) = link.rsplit_once('/').expect("a path");
    let mut garbled: Vec<String> = (0..token.len())
        .step_by(7)
        .map(|at| {
            let other = if &token[at..=at] == "A" { "B" } else { "A" };
            format!("{}{other}{}", &token[..at], &token[at + 1..])
        })
        .collect();
    garbled.extend([String::new(), "x".to_owned(), token[..token.len() - 1].to_owned(), format!("{token}A")]);
    garbled.extend([format!("{token}="), "%00".to_owned(), "..%2f..%2fadmin".to_owned(), "A".repeat(4000)]);
    for token in garbled {
        let link = format!("{stem}/{token}");
        assert_eq!(public.post(&link, ONE_CLICK).await.0, StatusCode::NOT_FOUND, "{token}");
        assert_eq!(public.get(&link).await.0, StatusCode::NOT_FOUND, "{token}");
    }
    assert_eq!(entries(&post).await, []);
    announce(&post, "ADA@example.bj", "sent").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_works_years_later_when_its_mail_is_anonymised_or_gone() {
    let post = start().await;
    let public = Public::of(post.daemon());
    for statement in [
        "update email_messages set recipient_email = null, recipient_name = null, subject = null, html_content = null, \
         text_content = null",
        "delete from email_messages",
    ] {
        let to = format!("{}@example.bj", &Uuid::new_v4().simple().to_string()[..8]);
        announce(&post, &to, "sent").await;
        let link = link_in(post.mails(1).await.last().expect("a mail"));
        sqlx::query(statement).execute(&post.database.pool).await.expect("done");
        assert_eq!(public.get(&link).await.0, StatusCode::OK);
        assert_eq!(public.post(&link, "scope=category").await.0, StatusCode::OK);
        assert_eq!(entries(&post).await.last(), Some(&entry(None, "page", "marketing")), "{statement}");
        announce(&post, &to, "suppressed").await;
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_operator_puts_somebody_back_and_that_is_kept() {
    let post = start().await;
    let public = Public::of(post.daemon());
    announce(&post, ADA, "sent").await;
    let link = link_in(&post.mails(1).await[0]);
    let history = async || {
        sqlx::query_as::<_, (String, String, String, String)>(
            "select change, reason, category, changed_by from suppression_changes order by id",
        )
        .fetch_all(&post.database.pool)
        .await
        .expect("a history")
    };
    let words = |change: &str, category: &str, by: &str| {
        (change.to_owned(), "unsubscribe".to_owned(), category.to_owned(), by.to_owned())
    };
    // By the command line ...
    assert_eq!(public.post(&link, "scope=category").await.0, StatusCode::OK);
    let lifting = ["suppressions", "remove", ADA, "--reason", "unsubscribe", "--category", "marketing", "--by", "eve"];
    let said = post.run(&lifting).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(entries(&post).await, []);
    assert_eq!(history().await, [words("added", "marketing", "page"), words("lifted", "marketing", "operator:eve")]);
    announce(&post, ADA, "sent").await;
    // ... and by the API; what was said for everything is an entry of its own.
    assert_eq!(public.post(&link, "scope=category").await.0, StatusCode::OK);
    assert_eq!(public.post(&link, "scope=all").await.0, StatusCode::OK);
    assert_eq!(entries(&post).await, [entry(Some(ADA), "page", ""), entry(Some(ADA), "page", "marketing")]);
    let id: String = sqlx::query_scalar("select encode(address_hash, 'hex') from suppressions limit 1")
        .fetch_one(&post.database.pool)
        .await
        .expect("an entry");
    let lift = async |category: &str| {
        let path = format!("/api/v1/email/suppressions/{id}?reason=unsubscribe&category={category}");
        post.daemon().ask(Method::DELETE, &path, OPERATOR_TOKEN, |request| request).await
    };
    let lifted = lift("marketing").await;
    assert_eq!(lifted.status, StatusCode::OK, "{}", lifted.json());
    assert_eq!(entries(&post).await, [entry(Some(ADA), "page", "")]);
    announce(&post, ADA, "suppressed").await;
    assert_eq!(lift("").await.status, StatusCode::OK);
    announce(&post, ADA, "sent").await;
    let last = history().await.into_iter().rev().take(2).collect::<Vec<_>>();
    assert_eq!(
        last,
        [words("lifted", "", "operator:test-operator"), words("lifted", "marketing", "operator:test-operator")]
    );
    let (_, changes) = post.daemon().get("/api/v1/email/changes", ADMIN_TOKEN).await;
    let items = changes["items"].as_array().expect("items");
    let actions: Vec<&str> = items.iter().filter_map(|item| item["action"].as_str()).collect();
    let actions: Vec<&str> = actions.into_iter().filter(|action| action.starts_with("suppression.")).collect();
    assert_eq!(actions, ["suppression.lift"; 3], "{changes}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_so_that_the_mail_provider_comes_again() {
    let post = start().await;
    announce(&post, ADA, "sent").await;
    let link = link_in(&post.mails(1).await[0]);
    let nowhere = Public::without_database().await;
    assert_eq!(nowhere.get(&link).await.0, StatusCode::OK, "the page asks for nothing");
    for (body, words) in [(ONE_CLICK, "try again later"), ("scope=all", "momentanément indisponible")] {
        let answer = nowhere.answer(&link, body).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"));
        let said = answer.text().await.expect("text");
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(Public::of(post.daemon()).post(&link, ONE_CLICK).await.0, StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_mail_that_goes_out_again_has_a_link_that_works() {
    let post = start().await;
    let old = announce(&post, ADA, "sent").await;
    let path = format!("/api/v1/email/messages/{old}/resend");
    let (status, said) = post.daemon().post(&path, ADMIN_TOKEN, &json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{said}");
    let request: Uuid = said["request_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    let new = post.database.wait_for(request, "sent").await.remove(0).id;
    let mails = post.mails(2).await;
    let (first, again) = (link_in(&mails[0]), link_in(&mails[1]));
    assert_ne!(first, again, "it is another mail's");
    assert!(mails[1].html.contains(&again) && !mails[1].html.contains(&first));
    assert_eq!(Public::of(post.daemon()).post(&again, ONE_CLICK).await.0, StatusCode::OK);
    assert_eq!(kinds(&post, new).await, ["retransmission", "sent", "unsubscribed"]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_public_address_no_marketing_goes_out_and_everybody_is_told_why() {
    let mut post = Installation::prepare(&[("EMAIL_PUBLIC_URL", ""), ("WEBHOOK_ADDR", "")]).await;
    post.start_daemon().await;
    let request = post.publish(&sample("reseller_announcement", &[ADA])).await;
    let letter = post.database.wait_for_letter(request).await;
    assert_eq!(letter.reason, "no_unsubscribe_link");
    assert!(letter.error.as_deref().is_some_and(|error| error.contains("EMAIL_PUBLIC_URL")), "{letter:?}");
    let transactional = post.publish(&ticket(ADA)).await;
    post.database.wait_for(transactional, "sent").await;
    let (status, said) = post.daemon().readiness().await;
    assert_eq!(status, StatusCode::OK, "incidents go all the same: {said}");
    let names = |said: &Value| {
        said.to_string().contains("reseller_announcement") && said.to_string().contains("EMAIL_PUBLIC_URL")
    };
    assert!(names(&said["notes"]), "{said}");
    let said = post.run(&["check", "--json"]).await.json();
    assert!(names(&said["warnings"]), "{said}");
    assert_eq!(post.relay.log().mails.len(), 1);
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);

    // Mended, it goes.
    post.set(&[("EMAIL_PUBLIC_URL", PUBLIC_URL), ("WEBHOOK_ADDR", "127.0.0.1:0")]);
    post.start_daemon().await;
    assert_eq!(post.daemon().readiness().await.1["notes"], json!([]));
    let said = post.run(&["dead", "replay", &letter.id.to_string()]).await;
    assert_eq!(said.code, 0, "{said:?}");
    post.database.wait_for(request, "sent").await;
    let mails: Vec<Mail> = post.mails(2).await;
    assert!(link_in(&mails[1]).starts_with(PUBLIC_URL));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_that_looks_like_the_placeholder_does_not_become_a_link() {
    let post = start().await;
    let mut request = sample("reseller_announcement", &[ADA]);
    set(&mut request, "title", "https://unsubscribe.invalid/00000000000000000000000000000000");
    let id = post.publish(&request).await;
    post.database.wait_for(id, "sent").await;
    let mail = post.mails(1).await.remove(0);
    assert_eq!(mail.subject, "https://unsubscribe.invalid/00000000000000000000000000000000");
    let link = link_in(&mail);
    assert_eq!(mail.text.matches(&link).count(), 1, "in the footer, and nowhere else");
    post.finish().await;
}
