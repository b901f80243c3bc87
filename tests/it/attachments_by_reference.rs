//! A mail never goes without its attachment: what lies elsewhere is fetched, checked and kept first, or the mail waits, and in
//! the end is a dead letter.

use std::os::unix::fs::symlink;

use bytes::Bytes;
use postrider::wire;

use crate::support::{
    audit::{Letter, Row},
    authority::Authority,
    files::{Files, KEY_ID, Mood, REGION, SECRET},
    installation::Installation,
    proxy::Proxy,
    requests::{attach, id, invoice, pdf, refer, sample, ticket},
    wait::until,
};

/// What a PNG begins with, and enough behind it to be one.
const PNG: &[u8] = b"\x89PNG\r\n\x1A\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1F\x15\xC4\x89";

/// Where a place lets somebody wait in vain. Elsewhere the limit is the usual one: a place is left alone for a while after
/// a fetch that a slow machine held up for longer.
const IMPATIENT: (&str, &str) = ("ATTACHMENT_FETCH_TIMEOUT_SECONDS", "1");

/// A web server with files, and an installation that may fetch from it.
async fn with_https(settings: &[(&str, &str)]) -> (Files, Authority, Installation) {
    let authority = Authority::for_host("127.0.0.1");
    let files = Files::https(&authority).await;
    let (host, ca) = (files.address.to_string(), authority.file());
    let usual = [("ATTACHMENT_HTTPS_HOSTS", host.as_str()), ("ATTACHMENT_CA_FILE", ca.to_str().expect("UTF-8"))];
    let post = Installation::start_with(&[&usual, settings].concat()).await;
    (files, authority, post)
}

fn invoice_with(uri: &str, to: &str) -> wire::EmailRequest {
    let mut request = invoice(to);
    refer(&mut request, "facture.pdf", "application/pdf", uri, &pdf());
    request
}

/// What the timeline says of a mail: kinds, and the attempt that each counted.
async fn told(post: &Installation, row: &Row) -> Vec<(String, i32)> {
    let lines = post.database.timeline(row.id).await;
    lines.into_iter().map(|line| (line.kind, line.attempt)).collect()
}

fn times(kind: &str, count: usize) -> Vec<(String, i32)> {
    vec![(kind.to_owned(), 0); count]
}

/// Its dead letter; and nothing of it went out.
async fn given_up(post: &Installation, request: &wire::EmailRequest) -> (Letter, Row) {
    let letter = post.database.wait_for_letter(id(request)).await;
    let row = post.database.wait_for(id(request), "failed").await.remove(0);
    assert_eq!((letter.reason.as_str(), row.reason.as_deref()), ("bad_attachment", Some("bad_attachment")), "{row:?}");
    assert_eq!((letter.attempts, row.attempts), (Some(0), 0), "no try of SMTP is counted");
    assert_eq!(post.relay.log().mails.len(), 0, "no mail without its attachment");
    (letter, row)
}

async fn kept(post: &Installation) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select a.filename, octet_length(b.data)::int8 from email_attachments a join attachment_blobs b on b.sha256 = a.sha256
         join email_messages m on m.id = a.message_id order by m.created_at, m.ordinal, a.ordinal",
    )
    .fetch_all(&post.database.pool)
    .await
    .expect("the audit answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_fetched_once_for_everybody_and_arrives_byte_for_byte() {
    let (files, _authority, post) = with_https(&[]).await;
    // As signed addresses have it, and from a server that does not know how large its file will be.
    let path = "/2026/facture%20n%C2%B01.pdf?X-Signature=a%2Fb&expires=1";
    files.put(path, pdf());
    files.set(Mood::Unsized);
    let mut request = sample("billing_invoice_monthly", &["ada@example.bj", "bob@example.bj", "eve@example.bj"]);
    refer(&mut request, "facture.pdf", "application/pdf", &files.url(path), &pdf());
    attach(&mut request, "annexe.pdf", "application/pdf", [pdf(), Bytes::from_static(b"\n% 2")].concat());
    refer(&mut request, "logo.png", "image/png", &files.url("/logo.png"), PNG);
    request.attachments[2].content_id = "logo@rgz".to_owned();
    files.put("/logo.png", PNG);
    post.publish(&request).await;
    let mails = post.mails(3).await;
    for mail in &mails {
        let found: Vec<_> = mail.files.iter().map(|(name, kind, _)| (name.as_str(), kind.as_str())).collect();
        let all = [("logo.png", "image/png"), ("facture.pdf", "application/pdf"), ("annexe.pdf", "application/pdf")];
        assert_eq!(found, all);
        assert!(mail.files[0].2 == PNG && mail.files[1].2 == pdf(), "byte for byte");
    }
    let shown = post.relay.look(|log| log.accepted().all(|mail| has(&mail.content, b"Content-ID: <logo@rgz>")));
    assert!(shown, "the image can be shown by its content id");
    assert_eq!((files.asked_for(path), files.asked_for("/logo.png")), (1, 1));
    let sizes = [pdf().len() as i64, pdf().len() as i64 + 4, PNG.len() as i64];
    let names = ["facture.pdf", "annexe.pdf", "logo.png"];
    let once: Vec<_> = names.iter().zip(sizes).map(|(name, size)| ((*name).to_owned(), size)).collect();
    assert_eq!(kept(&post).await, [once.clone(), once.clone(), once].concat(), "kept for the audit");

    // What is kept is not fetched again, be its place away by now.
    files.set(Mood::Status(500));
    post.publish(&invoice_with(&files.url("/elsewhere.pdf"), "joe@example.bj")).await;
    let mails = post.mails(4).await;
    assert!(mails[3].files[0].2 == pdf());
    assert_eq!(files.asked_for("/elsewhere.pdf"), 0);
    let count = async |result| post.daemon().metric("email_attachment_fetches_total", &[result]).await;
    assert_eq!((count("result=\"fetched\"").await, count("result=\"kept\"").await), (2.0, 1.0));
    post.finish().await;
}

fn has(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_there_yet_is_waited_for() {
    // The second rung leaves time to put it there.
    let (files, _authority, post) = with_https(&[("EMAIL_LADDER_STANDARD", "200ms,6s,10s")]).await;
    let request = invoice_with(&files.url("/late.pdf"), "ada@example.bj");
    post.publish(&request).await;
    until("it was asked for twice", async || files.asked_for("/late.pdf") >= 2).await;
    files.put("/late.pdf", pdf());
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    let told = told(&post, &row).await;
    let (last, before) = told.split_last().expect("it has a story");
    assert_eq!((last, row.attempts), (&("sent".to_owned(), 1), 1));
    assert_eq!(before, times("deferred", before.len()));
    assert!((2..=3).contains(&before.len()), "{told:?}");
    let mails = post.mails(1).await;
    assert!(mails[0].files[0].2 == pdf());
    assert_eq!(kept(&post).await, [("facture.pdf".to_owned(), pdf().len() as i64)]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_file_is_asked_for_once_up_the_ladder_and_can_be_replayed_when_it_is_right() {
    let (files, _authority, post) = with_https(&[]).await;
    let mut same_size = pdf().to_vec();
    *same_size.last_mut().expect("a byte") ^= 1;
    files.put("/changed.pdf", same_size);
    files.put("/longer.pdf", [pdf(), Bytes::from_static(b"!")].concat());
    files.put("/shorter.pdf", pdf().slice(1..));
    let wrong = ["/changed.pdf", "/longer.pdf", "/shorter.pdf", "/missing.pdf"];
    let requests = wrong.map(|path| invoice_with(&files.url(path), "ada@example.bj"));
    post.broker.publish_all(&requests).await;
    for ((path, request), words) in wrong.iter().zip(&requests).zip(["SHA-256", "bytes", "bytes", "answered 404"]) {
        let (letter, row) = given_up(&post, request).await;
        let error = letter.error.expect("words");
        let place = format!("attachment \"facture.pdf\": https://{}", files.address);
        assert!(error.starts_with(&place) && error.contains(words) && !error.contains(path), "{error}");
        assert_eq!(files.asked_for(path), 4, "at once, and after each rung");
        let told = told(&post, &row).await;
        assert_eq!(told, [times("deferred", 3), times("failed", 1)].concat(), "{path}");
        assert!(post.database.timeline(row.id).await.iter().all(|line| line.phase.as_deref() == Some("attachments")));
    }
    assert!(kept(&post).await.is_empty());
    files.put("/changed.pdf", pdf());
    let said = post.run(&["dead", "replay", &requests[0].request_id]).await;
    assert_eq!(said.code, 0, "{said:?}");
    post.database.wait_for(id(&requests[0]), "sent").await;
    assert!(post.mails(1).await[0].files[0].2 == pdf());
    post.finish().await;
}

/// Whatever a place does but give the file, it is asked again until the mail is too old. `folder` is where its files lie, and `uri`
/// what leads to one.
async fn is_asked_until_the_mail_is_too_old(
    files: &Files,
    post: &Installation,
    folder: &str,
    uri: impl Fn(&str) -> String,
) {
    let path = format!("{folder}/facture.pdf");
    let moods = [
        (Mood::Status(503), "answered 503"),
        (Mood::CutOff, "cannot be reached"),
        (Mood::Silent, "within 1 s"),
        (Mood::Stuck, "within 1 s"),
    ];
    for (n, (mood, words)) in moods.into_iter().enumerate() {
        files.put(&path, pdf());
        files.set(mood);
        let request = invoice_with(&uri(&path), "ada@example.bj");
        post.publish(&request).await;
        // Another one passes it.
        let other = ticket("bob@example.bj");
        post.publish(&other).await;
        post.database.wait_for(id(&other), "sent").await;
        post.relay.look(|log| assert!(log.accepted().all(|mail| mail.to == ["bob@example.bj"])));
        let letter = post.database.wait_for_letter(id(&request)).await;
        let row = post.database.wait_for(id(&request), "failed").await.remove(0);
        assert_eq!((letter.reason.as_str(), row.attempts), ("bad_attachment", 0), "{mood:?}");
        let errors: Vec<_> = post.database.timeline(row.id).await.into_iter().filter_map(|line| line.error).collect();
        assert!(errors.iter().any(|error| error.contains(words)), "{mood:?}: {errors:?}");
        let kinds = told(post, &row).await;
        // How often it could be asked in that time is the machine's doing.
        let (last, before) = kinds.split_last().expect("an event");
        assert!(last.0 == "failed" && !before.is_empty(), "it was put off before: {kinds:?}");
        assert!(before.iter().all(|(kind, _)| kind == "deferred"), "{kinds:?}");
        files.set(Mood::Well);
        let probe = format!("{folder}/asked-afterwards-{n}.pdf");
        until("the place is asked again", async || {
            let request = invoice_with(&uri(&probe), "joe@example.bj");
            post.publish(&request).await;
            post.database.wait_for(id(&request), "failed").await;
            files.asked_for(&probe) > 0
        })
        .await;
    }
    post.relay.look(|log| assert!(log.accepted().all(|mail| mail.to == ["bob@example.bj"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_away_ends_with_the_mails_age() {
    let (files, _authority, post) = with_https(&[IMPATIENT, ("EMAIL_AGE_MAX_STANDARD", "8s")]).await;
    is_asked_until_the_mail_is_too_old(&files, &post, "", |path| files.url(path)).await;
    post.finish().await;
}

/// A daemon that may read the bucket `invoices`.
async fn with_bucket(settings: &[(&str, &str)]) -> (Files, Installation) {
    let s3 = Files::s3().await;
    let endpoint = s3.endpoint();
    let its = [
        ("ATTACHMENT_S3_BUCKETS", "invoices"),
        ("AWS_ENDPOINT_URL_S3", endpoint.as_str()),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let post = Installation::start_with(&[&its, settings].concat()).await;
    (s3, post)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_slow_down_or_wrong_ends_in_a_dead_letter() {
    let (s3, post) = with_bucket(&[IMPATIENT, ("EMAIL_AGE_MAX_STANDARD", "8s")]).await;
    let uri = |path: &str| format!("s3:/{path}");
    is_asked_until_the_mail_is_too_old(&s3, &post, "/invoices", uri).await;
    post.finish().await;

    // Mails of any age: the ladder alone ends these.
    let (s3, post) = with_bucket(&[]).await;
    let mut same_size = pdf().to_vec();
    *same_size.last_mut().expect("a byte") ^= 1;
    s3.put("/invoices/changed.pdf", same_size);
    for (path, words) in [("/invoices/changed.pdf", "SHA-256"), ("/invoices/missing.pdf", "answered 404")] {
        let request = invoice_with(&uri(path), "ada@example.bj");
        post.publish(&request).await;
        let letter = post.database.wait_for_letter(id(&request)).await;
        let error = letter.error.expect("words");
        assert!(error.starts_with("attachment \"facture.pdf\": s3://invoices ") && error.contains(words), "{error}");
        assert_eq!(s3.asked_for(path), 4, "at once, and after each rung");
    }
    assert_eq!(post.relay.log().mails.len(), 0, "no mail without its attachment");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_place_holds_neither_a_connection_nor_its_lane() {
    let (files, _authority, post) =
        with_https(&[IMPATIENT, ("ATTACHMENT_FETCHES_MAX", "1"), ("SMTP_CONNECTIONS_STANDARD", "1")]).await;
    files.put("/facture.pdf", pdf());
    files.set(Mood::Silent);
    let slow: Vec<_> = (0..20).map(|n| invoice_with(&files.url("/facture.pdf"), &format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&slow).await;
    until("one waits", async || files.asked_for("/facture.pdf") > 0).await;
    let quick: Vec<_> = (0..20).map(|n| ticket(&format!("t{n}@example.bj"))).collect();
    post.broker.publish_all(&quick).await;
    for request in &quick {
        post.database.wait_for(id(request), "sent").await;
    }
    assert_eq!(post.relay.log().accepted().count(), 20);
    files.set(Mood::Well);
    for request in &slow {
        let row = post.database.wait_for(id(request), "sent").await.remove(0);
        assert_eq!(row.attempts, 1);
    }
    let mails = post.mails(40).await;
    let with_file = mails.iter().filter(|mail| mail.files.len() == 1 && mail.files[0].2 == pdf()).count();
    assert_eq!((with_file, mails.len()), (20, 40), "each once, and with its file");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_is_a_dead_letter_at_once_and_nobody_is_asked() {
    let (files, _authority, post) = with_https(&[("EMAIL_MAX_ATTACHMENT_SIZE_MB", "1")]).await;
    files.put("/facture.pdf", pdf());
    let other_port = "https://127.0.0.1:1/facture.pdf".to_owned();
    let mut cases: Vec<(wire::EmailRequest, &str)> = [
        (other_port.as_str(), "ATTACHMENT_HTTPS_HOSTS"),
        ("http://127.0.0.1/facture.pdf", "begins with http:"),
        ("gopher://127.0.0.1/facture.pdf", "begins with gopher:"),
        ("s3://bucket/facture.pdf", "ATTACHMENT_S3_BUCKETS"),
        ("file:///etc/passwd", "ATTACHMENT_FOLDER"),
        ("archive:", "the archive has no such file of this mail"),
        ("facture.pdf", "is not a URI"),
    ]
    .into_iter()
    .map(|(uri, words)| (invoice_with(uri, "ada@example.bj"), words))
    .collect();
    let mut large = invoice("ada@example.bj");
    refer(&mut large, "facture.pdf", "application/pdf", &files.url("/facture.pdf"), &vec![b'x'; 1024 * 1024 + 1]);
    cases.push((large, "the limit is 1048576"));
    let mut of_another_kind = invoice("ada@example.bj");
    refer(&mut of_another_kind, "facture.csv", "text/csv", &files.url("/facture.pdf"), &pdf());
    cases.push((of_another_kind, "takes pdf only, not csv"));
    for (request, words) in &cases {
        post.publish(request).await;
        let (letter, row) = given_up(&post, request).await;
        let error = letter.error.expect("words");
        assert!(error.contains(words), "{error}");
        assert_eq!(told(&post, &row).await, times("failed", 1), "{error}");
    }
    assert_eq!(files.asked_for("/facture.pdf"), 0);
    // This one must be fetched to be known; a redirect is no way around the list of hosts.
    let mut disguised = invoice("ada@example.bj");
    refer(&mut disguised, "facture.pdf", "application/pdf", &files.url("/logo.pdf"), PNG);
    files.put("/logo.pdf", PNG);
    post.publish(&disguised).await;
    let (letter, _) = given_up(&post, &disguised).await;
    assert!(letter.error.expect("words").contains("but the content is image/png"));
    assert_eq!(files.asked_for("/logo.pdf"), 1);
    files.set(Mood::Status(302));
    let moved = invoice_with(&files.url("/facture.pdf"), "ada@example.bj");
    post.publish(&moved).await;
    let (letter, _) = given_up(&post, &moved).await;
    assert!(letter.error.expect("words").contains("answered 302, and redirects are not followed"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_read_under_its_folder_only_and_no_link_leads_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).expect("made");
    std::fs::write(inside.join("facture n°1.pdf"), pdf()).expect("written");
    std::fs::write(folder.path().join("secret.pdf"), pdf()).expect("written");
    symlink(folder.path().join("secret.pdf"), inside.join("link.pdf")).expect("linked");
    symlink(inside.join("facture n°1.pdf"), inside.join("near.pdf")).expect("linked");
    let settings = [("ATTACHMENT_FOLDER", inside.to_str().expect("UTF-8"))];
    let post = Installation::start_with(&settings).await;
    let uri = |name: &str| format!("file://{}/{name}", inside.canonicalize().expect("it is there").display());
    for name in ["link.pdf", "../secret.pdf"] {
        let request = invoice_with(&uri(name), "ada@example.bj");
        post.publish(&request).await;
        let (letter, _) = given_up(&post, &request).await;
        let error = letter.error.expect("words");
        assert!(error.contains("ATTACHMENT_FOLDER"), "{error}");
    }
    for name in ["facture%20n%C2%B01.pdf", "near.pdf"] {
        let request = invoice_with(&uri(name), "ada@example.bj");
        post.publish(&request).await;
        post.database.wait_for(id(&request), "sent").await;
    }
    assert!(post.mails(2).await.iter().all(|mail| mail.files[0].2 == pdf()));

    // By the command line, which counts for itself.
    let local = uri("near.pdf");
    let said = post
        .run(&[
            "publish",
            "--template",
            "billing_invoice_monthly",
            "--sample",
            "--to",
            "eve@example.bj",
            "--attach-ref",
            &local,
        ])
        .await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(post.mails(3).await[2].files[0].2 == pdf());
    let said = post.run(&["check"]).await;
    assert!(said.out.contains("ATTACHMENT_FOLDER") && said.out.contains("can be read"), "{said:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_asked_under_a_signature_and_a_refusal_is_told() {
    let (s3, mut post) = with_bucket(&[]).await;
    s3.put("/invoices/2026/facture%20n%C2%B01.pdf", pdf());
    let request = invoice_with("s3://invoices/2026/facture n°1.pdf", "ada@example.bj");
    post.publish(&request).await;
    post.database.wait_for(id(&request), "sent").await;
    assert!(post.mails(1).await[0].files[0].2 == pdf());
    let said = post.run(&["check"]).await;
    assert!(said.out.contains("s3://invoices: answers"), "{said:?}");

    let wrong_key = |n: usize| {
        let mut request = invoice("ada@example.bj");
        let bytes = [pdf(), Bytes::from(n.to_string())].concat();
        s3.put("/invoices/other.pdf", bytes.clone());
        refer(&mut request, "facture.pdf", "application/pdf", "s3://invoices/other.pdf", &bytes);
        request
    };
    post.stop_daemon().await;
    post.set(&[("AWS_SECRET_ACCESS_KEY", "another")]);
    post.start_daemon().await;
    let request = wrong_key(1);
    post.publish(&request).await;
    let letter = post.database.wait_for_letter(id(&request)).await;
    let error = letter.error.expect("words");
    assert!(error.contains("s3://invoices answered 403 (SignatureDoesNotMatch)"), "{error}");
    assert_eq!(post.relay.log().mails.len(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_one_is_fetched_without_a_database_as_well() {
    let authority = Authority::for_host("127.0.0.1");
    let files = Files::https(&authority).await;
    let (host, ca) = (files.address.to_string(), authority.file());
    let settings = [
        ("ATTACHMENT_HTTPS_HOSTS", host.as_str()),
        ("ATTACHMENT_CA_FILE", ca.to_str().expect("UTF-8")),
        ("EMAIL_P0_SOURCES", "incident,billing"),
        // The second rung leaves time to put the file there.
        ("EMAIL_LADDER_FAST", "200ms,6s,10s"),
    ];
    let mut post = Installation::prepare(&settings).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
    let urgent = |path: &str| {
        let mut request = invoice_with(&files.url(path), "duty@example.bj");
        request.priority = wire::Priority::P0.into();
        request
    };
    let (late, never) = (urgent("/late.pdf"), urgent("/never.pdf"));
    post.broker.publish_all(&[late.clone(), never.clone()]).await;
    until("it was asked for twice", async || files.asked_for("/late.pdf") >= 2).await;
    files.put("/late.pdf", pdf());
    let mails = post.mails(1).await;
    assert!(mails[0].files[0].2 == pdf());
    until("the other is in its queue", async || {
        post.broker.depth("email.dead").await.is_some_and(|depth| depth.ready == 1)
    })
    .await;

    line.mend().await;
    let row = post.database.wait_for(id(&late), "sent").await.remove(0);
    assert_eq!(row.attempts, 1);
    // The other mail names the same bytes: it may have its line by now as well.
    assert_eq!(kept(&post).await[0], ("facture.pdf".to_owned(), pdf().len() as i64), "the audit has it");
    let letter = post.database.wait_for_letter(id(&never)).await;
    assert_eq!(letter.reason, "bad_attachment");
    post.wait_until_settled().await;
    assert_eq!(post.database.row(id(&never)).await.status, "failed");
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}
