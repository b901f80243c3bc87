//! The bytes of sent attachments in a bucket or a folder instead of the database: once by their hash, found wherever they were
//! put, and gone when nothing refers to them.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use chrono::Utc;
use postrider::{
    config::{AttachmentConfig, KeptIn},
    email::Lane,
    store::{
        Store, StoreError,
        retention::{Periods, steps},
    },
    wire,
};
use sha2::{Digest, Sha256};

use crate::support::{
    database::Database,
    files::{Files, KEY_ID, Mood, REGION, SECRET},
    installation::Installation,
    requests::{attach, id, invoice, pdf},
    wait::until,
};

fn invoice_with(bytes: &Bytes, to: &str) -> wire::EmailRequest {
    let mut request = invoice(to);
    attach(&mut request, "facture.pdf", "application/pdf", bytes.clone());
    request
}

/// A file that differs from others by this number.
fn file(n: u8) -> Bytes {
    [pdf(), Bytes::from(vec![b'%', n])].concat().into()
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// An installation that keeps attachments in a bucket.
async fn with_bucket(settings: &[(&str, &str)]) -> (Files, Installation) {
    let s3 = Files::s3().await;
    let endpoint = s3.endpoint();
    let usual = [
        ("EMAIL_ATTACHMENT_STORE", "s3://mails/kept"),
        ("AWS_ENDPOINT_URL_S3", endpoint.as_str()),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let post = Installation::start_with(&[&usual, settings].concat()).await;
    (s3, post)
}

/// What retention does about files that nothing refers to: how many rows went, and how many objects. One at a time may.
async fn delete_unreferenced(store: &Store) -> (u64, i64) {
    let day = Duration::from_secs(24 * 3600);
    let moments = Periods { anonymize_after: 90 * day, audit_retention: 365 * day, life_max: 31 * day }.at(Utc::now());
    let mut rows = 0;
    if let Some(mut desk) = store.try_lock_retention().await.expect("the database answers") {
        for step in steps().iter().filter(|step| step.table == "attachment_blobs") {
            let batch = store.retain(&mut desk, step, &moments, 10, None).await.expect("the database answers");
            rows += batch.rows.iter().map(|(_, rows)| rows).sum::<u64>();
        }
        desk.leave().await;
    }
    (rows, store.delete_due_objects(moments.now, 10).await.expect("the database answers"))
}

/// Where the rows say that bytes are; nothing: in the database.
async fn locations(database: &Database) -> Vec<Option<String>> {
    sqlx::query_scalar("select location from attachment_blobs order by created_at")
        .fetch_all(&database.pool)
        .await
        .expect("the audit answers")
}

async fn due(database: &Database) -> i64 {
    sqlx::query_scalar("select count(*) from attachment_objects_due")
        .fetch_one(&database.pool)
        .await
        .expect("the audit answers")
}

async fn age(database: &Database) {
    for statement in [
        "update attachment_blobs set used_at = now() - interval '2 days'",
        "update attachment_objects_due set due_at = due_at - interval '2 days'",
    ] {
        sqlx::query(statement).execute(&database.pool).await.expect("changed");
    }
}

async fn resend(post: &Installation, request: &wire::EmailRequest, mails: usize) {
    let message = post.database.row(id(request)).await.id.to_string();
    let said = post.run(&["messages", "resend", &message, "--key", &format!("mail {mails}")]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let mails = post.mails(mails).await;
    let last = mails.last().expect("a mail");
    assert_eq!(last.files.len(), 1, "{:?}", last.files.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_goes_when_its_file_is_in_the_bucket_and_is_sent_again_from_there() {
    let (s3, mut post) = with_bucket(&[]).await;
    let (first, second) = (invoice_with(&file(1), "ada@example.bj"), invoice_with(&file(1), "bob@example.bj"));
    post.publish(&first).await;
    post.database.wait_for(id(&first), "sent").await;
    post.publish(&second).await;
    post.database.wait_for(id(&second), "sent").await;
    let objects = s3.files();
    let [(key, bytes)] = objects.iter().collect::<Vec<_>>()[..] else { panic!("{} objects", objects.len()) };
    let hex = hex::encode(hash(&file(1)));
    assert!(key.starts_with(&format!("/mails/kept/{}/{hex}-", &hex[..2])) && *bytes == file(1), "{key}");
    assert_eq!(locations(&post.database).await, [Some(format!("s3:/{key}"))], "once, by its hash");
    assert_eq!(due(&post.database).await, 0);
    resend(&post, &first, 3).await;
    assert!(post.mails(3).await[2].files[0].2 == file(1));
    let said = post.run(&["check"]).await;
    assert!(said.out.contains("EMAIL_ATTACHMENT_STORE s3://mails: can be written, read and cleared"), "{said:?}");
    assert_eq!(s3.files().len(), 1, "nothing is left of the look");

    // Kept in a folder from now on: what is in the bucket is still read there, and not written again.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("it is there");
    post.stop_daemon().await;
    post.set(&[("EMAIL_ATTACHMENT_STORE", &format!("file://{}", path.display()))]);
    post.start_daemon().await;
    let third = invoice_with(&file(2), "eve@example.bj");
    post.publish(&third).await;
    post.database.wait_for(id(&third), "sent").await;
    resend(&post, &second, 5).await;
    resend(&post, &third, 6).await;
    let mails = post.mails(6).await;
    assert!(mails[4].files[0].2 == file(1) && mails[5].files[0].2 == file(2));
    let places = locations(&post.database).await;
    assert_eq!(places.len(), 2);
    let written = places[1].as_deref().and_then(|place| place.strip_prefix("file://")).expect("in the folder");
    assert_eq!(std::fs::read(written).expect("it is there"), file(2));

    // And in the database again.
    post.stop_daemon().await;
    post.set(&[("EMAIL_ATTACHMENT_STORE", "postgres")]);
    post.start_daemon().await;
    resend(&post, &first, 7).await;
    assert_eq!(locations(&post.database).await.len(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_lets_a_mail_wait_but_not_those_without_files_nor_an_urgent_one() {
    let (s3, post) = with_bucket(&[("EMAIL_P0_SOURCES", "incident,billing")]).await;
    s3.set(Mood::Status(503));
    let patient = invoice_with(&file(1), "ada@example.bj");
    post.publish(&patient).await;
    until("it was put off twice", async || {
        let rows = post.database.rows(id(&patient)).await;
        rows.len() == 1 && post.database.timeline(rows[0].id).await.len() >= 2
    })
    .await;
    let bare = invoice("bob@example.bj");
    post.publish(&bare).await;
    post.database.wait_for(id(&bare), "sent").await;
    let mut urgent = invoice_with(&file(2), "duty@example.bj");
    urgent.priority = wire::Priority::P0.into();
    post.publish(&urgent).await;
    post.database.wait_for(id(&urgent), "sent").await;
    assert_eq!(locations(&post.database).await, [None], "the urgent one's, in the database");
    assert_eq!(post.relay.log().accepted().count(), 2);
    s3.set(Mood::Well);
    let row = post.database.wait_for(id(&patient), "sent").await.remove(0);
    assert_eq!(row.attempts, 1);
    let error = post.database.timeline(row.id).await.remove(0).error.expect("words");
    assert!(error.contains("EMAIL_ATTACHMENT_STORE") && error.contains("s3://mails answered 503"), "{error}");
    let mails = post.mails(3).await;
    assert!(mails[1].files[0].2 == file(2) && mails[2].files[0].2 == file(1));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_refers_to_goes_and_what_somebody_needs_stays() {
    let (s3, post) = with_bucket(&[]).await;
    let (kept, forgotten) = (invoice_with(&file(1), "ada@example.bj"), invoice_with(&file(2), "bob@example.bj"));
    post.broker.publish_all(&[kept.clone(), forgotten.clone()]).await;
    for request in [&kept, &forgotten] {
        post.database.wait_for(id(request), "sent").await;
    }
    let store = post.database.store_keeping(in_bucket(&s3));
    let delete = async || delete_unreferenced(&store).await;
    // As retention forgets a mail.
    let row = post.database.row(id(&forgotten)).await.id;
    sqlx::query("delete from email_attachments where message_id = $1")
        .bind(row)
        .execute(&post.database.pool)
        .await
        .expect("deleted");
    assert_eq!(delete().await, (0, 0), "somebody may be about to need it");
    age(&post.database).await;
    s3.set(Mood::Status(503));
    assert_eq!(delete().await, (1, 0));
    assert_eq!((s3.files().len(), due(&post.database).await), (2, 1), "the row is gone, and its object is owed");
    s3.set(Mood::Well);
    assert_eq!(delete().await, (0, 1));
    assert_eq!(due(&post.database).await, 0);
    assert!(s3.files().values().eq([&file(1)]), "the other one is referred to");
    // The same bytes come again, and are written again.
    let again = invoice_with(&file(2), "bob@example.bj");
    post.publish(&again).await;
    post.database.wait_for(id(&again), "sent").await;
    assert_eq!(s3.files().len(), 2);
    post.finish().await;
}

fn in_bucket(s3: &Files) -> AttachmentConfig {
    let mut config = AttachmentConfig {
        kept_in: KeptIn::S3 { bucket: "mails".to_owned(), prefix: "kept".to_owned() },
        ..AttachmentConfig::default()
    };
    config.s3.region = REGION.to_owned();
    config.s3.endpoint = Some(s3.endpoint());
    config.s3.credentials = Some(postrider::config::S3Credentials {
        key_id: KEY_ID.to_owned().into(),
        secret: SECRET.to_owned().into(),
        token: None,
    });
    config
}

fn in_folder(path: &Path) -> AttachmentConfig {
    AttachmentConfig { kept_in: KeptIn::Folder(path.to_owned()), ..AttachmentConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_write_the_same_bytes_while_they_are_deleted_never_lose_them() {
    let database = Database::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("it is there");
    let (one, two) = (database.store_keeping(in_folder(&path)), database.store_keeping(in_folder(&path)));
    let (bytes, sha256) = (file(1), hash(&file(1)));
    for _ in 0..40 {
        age(&database).await;
        let keep = async |store: &postrider::store::Store| store.keep_attachment(Lane::Standard, &sha256, &bytes).await;
        let (kept, also_kept, _, _) =
            tokio::join!(keep(&one), keep(&two), delete_unreferenced(&two), delete_unreferenced(&one));
        kept.and(also_kept).expect("kept");
        // Whoever was told that they are kept finds them.
        let found = one.attachment(Lane::Standard, &sha256).await.expect("it is there");
        assert_eq!(found, Some(bytes.clone()));
        assert_eq!(locations(&database).await.len(), 1);
    }
    age(&database).await;
    until("everything is gone", async || {
        delete_unreferenced(&one).await;
        locations(&database).await.is_empty() && due(&database).await == 0
    })
    .await;
    let left = std::fs::read_dir(&path).expect("a folder").flat_map(|folder| {
        std::fs::read_dir(folder.expect("an entry").path()).expect("a folder").map(|file| file.expect("a file").path())
    });
    assert_eq!(left.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new(), "no object without a row");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_were_changed_or_lost_are_not_taken_for_those_that_were_kept() {
    let database = Database::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("it is there");
    let store = database.store_keeping(in_folder(&path));
    let (bytes, sha256) = (file(1), hash(&file(1)));
    store.keep_attachment(Lane::Standard, &sha256, &bytes).await.expect("kept");
    let place = locations(&database).await.remove(0).expect("in the folder");
    let place = Path::new(place.strip_prefix("file://").expect("a file"));
    std::fs::write(place, file(2)).expect("written");
    let error = store.attachment(Lane::Standard, &sha256).await.expect_err("another file");
    assert!(matches!(error, StoreError::Shelf(_)) && error.to_string().contains("SHA-256"), "{error}");
    std::fs::remove_file(place).expect("removed");
    let error = store.attachment(Lane::Standard, &sha256).await.expect_err("no file");
    assert!(error.to_string().contains("is gone"), "{error}");
    assert!(store.attachment(Lane::Standard, &[7; 32]).await.expect("an answer").is_none());
}
