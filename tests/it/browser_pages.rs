//! The pages in a real browser, as a person uses them, at the width of a phone and of a desktop, light and dark.

use fantoccini::Locator;

use crate::support::{
    browser::{Browser, PHONE},
    daemon::OPERATOR_TOKEN,
    installation::Installation,
    requests::ticket,
    wait::until,
};

/// What the frame shows. Its first document is an empty one, and may be replaced while it is looked at.
async fn shown_in_frame(browser: &Browser) -> String {
    match browser.client.find(Locator::Css("body")).await {
        Ok(body) => body.text().await.unwrap_or_default(),
        Err(_) => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn did_they_get_it_is_answered_from_the_keyboard() {
    let post = Installation::start().await;
    for to in ["ada@example.bj", "grace@example.bj", "grace@example.bj"] {
        let request = post.publish(&ticket(to)).await;
        post.database.wait_for(request, "sent").await;
    }
    let browser = Browser::start(post.daemon()).await;
    browser.open("/messages").await;
    browser.arrives_at("/sign-in").await;
    browser.inspect("sign-in").await;
    browser.fill("#token", OPERATOR_TOKEN).await;
    browser.click("button[type=submit]").await;
    browser.arrives_at("/messages").await;
    browser.shows("3 mails").await;
    browser.inspect("messages").await;

    // `/` leads to the search, Enter asks.
    browser.find("body").await.send_keys("/").await.expect("a key");
    let field = browser.client.active_element().await.expect("the focus");
    assert_eq!(field.attr("name").await.expect("a name").as_deref(), Some("to"));
    field.send_keys("grace@example.bj\u{E007}").await.expect("keys");
    browser.shows("2 mails").await;
    browser.click("tbody a").await;
    browser.shows("What happened").await;
    assert!(browser.text().await.contains("grace@example.bj"));
    browser.find("iframe.mail").await;
    browser.client.enter_frame(0).await.expect("the mail");
    until("the mail is shown in its frame", async || {
        let text = shown_in_frame(&browser).await;
        text.contains("grace") || text.len() > 40
    })
    .await;
    browser.client.enter_parent_frame().await.expect("the page");
    browser.inspect("message").await;

    // `g` and a letter lead to a section.
    browser.find("body").await.send_keys("gs").await.expect("keys");
    browser.arrives_at("/suppressions").await;
    browser.fill("input[name=address][type=email]", "alan@example.bj").await;
    browser.fill("input[name=note][type=text]", "by telephone").await;
    browser.click("form[action='/suppressions/add'] button").await;
    browser.shows("by telephone").await;
    browser.inspect("suppression").await;
    browser.click("button.danger").await;
    browser.client.accept_alert().await.expect("it asks first");
    browser.shows("Nothing stops mail to it.").await;
    browser.open("/suppressions").await;
    browser.shows("Nobody is on the list like that.").await;
    browser.inspect("suppressions").await;
    browser.open("/feedback").await;
    browser.inspect("feedback").await;
    browser.open("/changes").await;
    browser.shows("suppression.lift").await;
    browser.inspect("changes").await;

    browser.click(".who button").await;
    browser.arrives_at("/sign-in").await;
    browser.open("/messages").await;
    browser.arrives_at("/sign-in").await;
    browser.close().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mail_would_run_does_not_run_in_an_operators_browser() {
    let post = Installation::start().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let hostile = "<!DOCTYPE html><title>a mail</title><p>harmless<script>document.title='run';top.document.title='run'</script>
        <img src=x onerror=\"document.title='run'\"><meta http-equiv=refresh content=\"0;url=/sign-in\">
        <form action=/sign-out method=post><button autofocus>press</button></form><a target=_top href=/sign-in>leave</a>";
    let id: uuid::Uuid = sqlx::query_scalar("update email_messages set html_content = $1, subject = $1 returning id")
        .bind(hostile)
        .fetch_one(&post.database.pool)
        .await
        .expect("a row");
    let browser = Browser::start(post.daemon()).await;
    browser.sign_in(OPERATOR_TOKEN).await;

    browser.open(&format!("/messages/{id}")).await;
    let title = browser.client.title().await.expect("a title");
    assert!(title.contains("<script>"), "the subject is text: {title}");
    browser.client.enter_frame(0).await.expect("the mail");
    until("the mail is shown", async || shown_in_frame(&browser).await.contains("harmless")).await;
    browser.click("button").await;
    browser.click("a").await;
    browser.client.enter_parent_frame().await.expect("the page");
    assert_eq!(browser.path().await, format!("/messages/{id}"), "it leads nowhere");
    assert_eq!(browser.client.title().await.expect("a title"), title);
    // Nor where somebody opens the frame by itself.
    browser.open(&format!("/messages/{id}/mail")).await;
    browser.shows("harmless").await;
    assert_eq!(browser.client.title().await.expect("a title"), "a mail");
    browser.open("/messages").await;
    browser.shows("1 mail").await;
    browser.close().await;
    post.finish().await;
}

/// Or all the other tests of this kind would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_not_sound_is_noticed() {
    let post = Installation::start().await;
    let browser = Browser::start(post.daemon()).await;
    browser.open("/sign-in").await;
    browser.is_sound().await;
    for (harm, word) in [
        ("document.querySelector('label').remove()", "label"),
        ("document.documentElement.removeAttribute('lang')", "html-has-lang"),
        ("document.querySelector('.muted').style.color = '#bbb'", "color-contrast"),
        ("document.querySelector('h1').style.width = '5000px'", "wider"),
        (
            "document.body.append(Object.assign(document.createElement('script'), { text: '1' }))",
            "Content Security Policy",
        ),
        ("document.body.append(Object.assign(new Image(), { src: '/assets/none', alt: '' }))", "404"),
        ("setTimeout(() => { throw new Error('thrown'); })", "thrown"),
    ] {
        browser.open("/sign-in").await;
        browser.run(harm, Vec::new()).await;
        until(&format!("it is noticed: {harm}"), async || {
            browser.faults().await.iter().any(|fault| fault.contains(word))
        })
        .await;
    }
    browser.sign_in(OPERATOR_TOKEN).await;
    browser.resize(PHONE).await;
    browser.open("/changes").await;
    browser.is_sound().await;
    for (harm, word) in [
        ("document.querySelector('td').style.paddingLeft = 0", "among the labels: When"),
        ("document.querySelector('[name=target]').style.width = '400px'", "sticks out of its card: target"),
        ("document.querySelector('nav').scrollLeft = 0", "out of sight: Changes"),
    ] {
        browser.run(harm, Vec::new()).await;
        let faults = browser.faults().await;
        assert!(faults.iter().any(|fault| fault.contains(word)), "{harm}: {faults:?}");
    }
    browser.close().await;
    post.finish().await;
}
