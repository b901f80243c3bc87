//! Every template, published as a producer does, arrives once and reads as it should.

use std::collections::BTreeMap;

use crate::support::{
    installation::Installation,
    requests::{id, sample, templates},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_template_is_lost_sent_twice_or_unreadable() {
    let post = Installation::start().await;
    let mut requests = BTreeMap::new();
    for template in templates() {
        let to = format!("{}@example.bj", template.key.replace('_', "-"));
        let mut request = sample(&template.key, &[&to]);
        request.recipients[0].display_name = "Adélaïde Hounsou, directrice".to_owned();
        post.publish(&request).await;
        requests.insert(to, request);
    }
    // The incident goes to the NOC as well.
    let count = requests.len() + 1;
    let begun = chrono::Utc::now().timestamp();
    let mails = post.mails(count).await;
    for (to, request) in &requests {
        let of_mine: Vec<_> = mails.iter().filter(|mail| mail.envelope_to == *to).collect();
        assert_eq!(of_mine.len(), 1, "{to}");
        let mail = of_mine[0];
        let rows = post.database.wait_for(id(request), "sent").await;
        let row = rows.iter().find(|row| row.recipient_email == *to).expect("a row for this recipient");
        assert_eq!(mail.envelope_from, "noreply@rgz.bj");
        assert_eq!(mail.from, ("RGZ Notifications".to_owned(), "noreply@rgz.bj".to_owned()));
        assert_eq!(mail.to, ("Adélaïde Hounsou, directrice".to_owned(), to.clone()));
        assert_eq!(mail.reply_to, "support@rgz.bj");
        assert_eq!(format!("<{}>", mail.message_id), row.message_id);
        assert_eq!(Some(&mail.subject), row.subject.as_ref());
        assert!((begun - 60..=begun + 60).contains(&mail.date), "{to}: {}", mail.date);
        assert_eq!(mail.header("Auto-Submitted").as_deref(), Some("auto-generated"), "{to}");
        assert!(mail.html.contains("<html lang=\"fr\""), "{to}: {}", mail.html);
        for part in [&mail.subject, &mail.text, &mail.html] {
            assert!(!part.contains("{{") && !part.contains("XXXXX"), "{to}: {part}");
        }
        assert!(mail.text.len() > 100 && mail.html.len() > 500, "{to}");
        assert_eq!((row.attempts, row.template_version), (1, Some(1)));
        assert!(row.sent_at.is_some() && row.latency_ms.is_some_and(|ms| ms >= 0), "{row:?}");
        assert_eq!(row.settlement, "none");
    }
    assert_eq!(post.relay.log().mails.len(), count, "nothing else was said to the relay");
    assert_eq!(post.database.all_rows().await.len(), count);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}
