//! Every mail in every language in a real browser, as mail programs show it: phone and desktop, light and dark; with its style
//! sheet, and without one.

use std::fs;

use postrider::wire;

use crate::support::{
    browser::{Browser, PHONE},
    installation::Installation,
    requests::{in_every_language, mails_of},
};

/// Without its style sheets and what is for Outlook alone: what programs make of it that heed neither.
fn without_styles(html: &str) -> String {
    let (mut rest, mut out) = (html, String::with_capacity(html.len()));
    while let Some((before, style)) = rest.split_once("<style") {
        out.push_str(before);
        rest = style.split_once("</style>").expect("it ends").1;
    }
    assert!(out.len() < html.len(), "there was one");
    out + rest
}

/// Puts a word that is longer than a line into everything that is not a link, a number or a time.
fn lengthen(request: &mut wire::EmailRequest) {
    let long = "Anticonstitutionnellement".repeat(4);
    for value in request.variables.get_or_insert_default().fields.values_mut() {
        match &mut value.kind {
            Some(wire::ValueKind::StringValue(text)) if text.starts_with("https://") => text.push_str(&long),
            Some(wire::ValueKind::StringValue(text)) if !text.starts_with(|c: char| c.is_ascii_digit()) => {
                *text = long.clone();
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_wider_than_a_phone_or_hard_to_read() {
    let post = Installation::start_with(&[
        ("EMAIL_SUPPORT_EMAIL", "support@rgz.bj"),
        ("EMAIL_SUPPORT_PHONE", "+229 01 00 00 00 00"),
        ("EMAIL_RATE_LIMIT_MARKETING", "unlimited"),
    ])
    .await;
    let mut all = in_every_language();
    let mut long = in_every_language();
    for one in &mut long {
        one.name = format!("long-{}", one.name);
        one.request.recipients[0].address = format!("{}@example.bj", one.name);
        lengthen(&mut one.request);
    }
    all.append(&mut long);
    for one in &all {
        post.publish(&one.request).await;
    }
    let mails = post.mails(mails_of(&all)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let browser = Browser::start_at(&format!("file://{}", folder.path().display())).await;
    for one in &all {
        let to = &one.request.recipients[0].address;
        let mail = mails.iter().find(|mail| mail.envelope_to == *to).unwrap_or_else(|| panic!("{to} got nothing"));
        let write = |file: &str, html: &str| fs::write(folder.path().join(file), html).expect("written");
        let (whole, bare) = (format!("{}.html", one.name), format!("{}.bare.html", one.name));
        write(&whole, &mail.html);
        write(&bare, &without_styles(&mail.html));
        browser.open(&format!("/{whole}")).await;
        if !one.name.starts_with("long-") {
            browser.inspect_mail(&format!("mail-{}", one.name)).await;
        }
        browser.resize(PHONE).await;
        assert_eq!(browser.excess().await, Some(0), "{whole}");
        browser.open(&format!("/{bare}")).await;
        assert_eq!(browser.excess().await, Some(0), "{bare}");
        browser.picture(&format!("mail-{}-phone-bare", one.name), PHONE).await;
    }
    browser.close().await;
    post.finish().await;
}
