//! A consumer holds as many messages as are configured while they are small, and few while they are large.

use bytes::Bytes;
use postrider::wire;

use crate::support::{
    broker::Broker,
    installation::Installation,
    mail::Mail,
    requests::{attach, id, invoice, pdf, ticket},
    wait::until,
};

/// Of each large file.
const LARGE: usize = 9 * 1024 * 1024;

/// A file that differs from all others of this test.
fn large_pdf(seed: usize) -> Bytes {
    let mut bytes = pdf().to_vec();
    let mut state = seed as u32 + 1;
    bytes.resize_with(LARGE, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.into()
}

fn large_invoice(n: usize) -> wire::EmailRequest {
    let mut request = invoice(&format!("large-{n}@example.bj"));
    attach(&mut request, "facture.pdf", "application/pdf", large_pdf(n));
    request
}

fn tickets(count: usize) -> Vec<wire::EmailRequest> {
    (0..count).map(|n| ticket(&format!("small-{n}@example.bj"))).collect()
}

async fn until_prefetch(broker: &Broker, wanted: u64) {
    let what = format!("a consumer of email.standard with a prefetch of {wanted}");
    until(&what, async || broker.prefetches("email.standard").await == [wanted]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_open_the_window_and_large_ones_shut_it() {
    let post = Installation::start().await;
    until_prefetch(&post.broker, 2).await;
    post.broker.publish_all(&tickets(150)).await;
    until_prefetch(&post.broker, 64).await;
    post.wait_until_settled().await;
    post.broker.publish(&large_invoice(0)).await;
    until_prefetch(&post.broker, 2).await;
    post.broker.publish_all(&tickets(600)).await;
    until_prefetch(&post.broker, 64).await;
    // What is taken and not claimed yet has no row that could be waited for.
    until("every mail is sent", async || post.database.count("sent").await == 751).await;
    post.wait_until_settled().await;
    assert_eq!(post.relay.log().mails.len(), 751, "none went twice");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_window_of_large_messages_after_small_ones_arrives_whole_and_once() {
    let post = Installation::start().await;
    post.broker.publish_all(&tickets(150)).await;
    until_prefetch(&post.broker, 64).await;
    post.wait_until_settled().await;
    // None ends, so that what the daemon holds is what it took.
    post.relay.hold_final_dots();
    let large: Vec<wire::EmailRequest> = (0..12).map(large_invoice).collect();
    post.broker.publish_all(&large).await;
    until_prefetch(&post.broker, 2).await;
    // Two are at work and at most two wait for their turn, which is the broker's to say; the rest is back in the queue,
    // although the window had room for all.
    until("the others are handed back", async || {
        let depth = post.broker.depth("email.standard").await;
        depth.is_some_and(|depth| (8..=10).contains(&depth.ready))
    })
    .await;
    assert!(post.daemon().metric("email_in_flight", &["lane=\"standard\""]).await <= 2.0);
    post.relay.release_final_dots();
    for (n, request) in large.iter().enumerate() {
        post.database.wait_for(id(request), "sent").await;
        let to = format!("large-{n}@example.bj");
        let mails: Vec<Mail> =
            post.relay.look(|log| log.accepted().filter(|mail| mail.to == [to.clone()]).map(Mail::read).collect());
        let [mail] = mails.as_slice() else { panic!("{} mails to {to}", mails.len()) };
        let [(name, kind, bytes)] = mail.files.as_slice() else { panic!("{} files", mail.files.len()) };
        assert_eq!((name.as_str(), kind.as_str()), ("facture.pdf", "application/pdf"));
        assert!(*bytes == large_pdf(n), "the file of {to} is another one");
    }
    post.finish().await;
}
