//! The suppression list by the command line: several reasons for one address, ends, and files both ways.

use std::fmt::Write;

use postrider::{
    email::SuppressionReason,
    store::suppressions::{NewSuppression, Written},
};
use serde_json::{Value, json};

use crate::support::{
    database::Database,
    installation::Installation,
    process::{Said, postrider},
    requests::{sample, ticket},
};

const ADA: &str = "ada@example.bj";

fn reasons(items: &Value) -> Vec<&str> {
    items.as_array().expect("items").iter().map(|item| item["reason"].as_str().expect("a reason")).collect()
}

async fn shown(post: &Installation, address: &str) -> Value {
    post.run(&["suppressions", "show", address, "--json"]).await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifting_one_reason_keeps_the_other_and_marketing_honours_more_than_the_rest() {
    let post = Installation::start().await;
    for reason in ["hard_bounce", "unsubscribe"] {
        let said = post.run(&["suppressions", "add", ADA, "--reason", reason, "--by", "eve"]).await;
        assert!(said.code == 0 && said.out.starts_with("Added"), "{said:?}");
    }
    let request = post.publish(&ticket(ADA)).await;
    post.database.wait_for(request, "suppressed").await;

    let said = post.run(&["suppressions", "remove", "ADA@example.bj", "--reason", "hard_bounce"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let (lifted, left) = said.out.split_once("Still on the list:").expect("both are told");
    assert!(lifted.contains("hard_bounce") && left.contains("unsubscribe"), "{said:?}");
    assert_eq!(reasons(&shown(&post, ADA).await["items"]), ["unsubscribe"]);

    let transactional = post.publish(&ticket(ADA)).await;
    post.database.wait_for(transactional, "sent").await;
    let marketing = post.publish(&sample("reseller_announcement", &[ADA])).await;
    let row = post.database.wait_for(marketing, "suppressed").await.remove(0);
    assert_eq!(row.error_message.as_deref(), Some("on the suppression list: unsubscribe"));

    // A complaint beside it is what is told, whoever came first.
    post.run(&["suppressions", "add", ADA, "--reason", "complaint"]).await;
    let marketing = post.publish(&sample("reseller_announcement", &[ADA])).await;
    let row = post.database.wait_for(marketing, "suppressed").await.remove(0);
    assert_eq!(row.error_message.as_deref(), Some("on the suppression list: complaint"));
    assert_eq!(post.database.rows(marketing).await.len(), 1, "and the mail is one, for all its reasons");

    let nothing = post.run(&["suppressions", "remove", "grace@example.bj"]).await;
    assert!(nothing.code == 1 && nothing.out.contains("Nothing to lift"), "{nothing:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_ends_and_is_renewed_and_never_shortened() {
    let post = Installation::start().await;
    let add = async |more: &[&str]| {
        post.run(&[&["suppressions", "add", ADA, "--reason", "complaint", "--json"], more].concat()).await.json()
    };
    let first = add(&["--expires", "30d", "--note", "by telephone"]).await;
    assert_eq!((&first["added"], &first["item"]["note"]), (&json!(true), &json!("by telephone")), "{first}");
    let request = post.publish(&ticket(ADA)).await;
    post.database.wait_for(request, "suppressed").await;
    let shorter = add(&["--expires", "1d"]).await;
    assert_eq!((&shorter["added"], &shorter["changed"]), (&json!(false), &json!(false)), "{shorter}");
    assert_eq!(shorter["item"]["expires_at"], first["item"]["expires_at"]);

    sqlx::query("update suppressions set expires_at = now()").execute(&post.database.pool).await.expect("over");
    let request = post.publish(&ticket(ADA)).await;
    post.database.wait_for(request, "sent").await;
    assert_eq!(shown(&post, ADA).await["items"][0]["is_in_force"], false);

    let renewed = add(&[]).await;
    assert_eq!((&renewed["changed"], &renewed["item"]["expires_at"]), (&json!(true), &Value::Null), "{renewed}");
    assert_eq!(renewed["item"]["created_at"], first["item"]["created_at"], "since then");
    let unlimited = add(&["--expires", "1d"]).await;
    assert_eq!(unlimited["item"]["expires_at"], Value::Null, "{unlimited}");
    let request = post.publish(&ticket(ADA)).await;
    post.database.wait_for(request, "suppressed").await;
    let for_people =
        async |reason: &str| post.run(&["suppressions", "add", ADA, "--reason", reason, "--expires", "2d"]).await.out;
    assert!(for_people("complaint").await.contains("longer than you asked for"));
    assert!(!for_people("hard_bounce").await.contains("longer"), "it lasts as long as was asked");
    let past = post.run(&["suppressions", "add", ADA, "--expires", "2020-01-01"]).await;
    assert!(past.code == 2 && past.err.contains("to come"), "{past:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_is_idempotent_in_whatever_batch() {
    let database = Database::start().await;
    let store = database.store();
    let entry = |n: u8, reason| NewSuppression::new([n; 32], None, reason, "ses".to_owned());
    let mut entries: Vec<_> = (0..200).map(|n| entry(n, SuppressionReason::HardBounce)).collect();
    entries.extend((0..200).map(|n| entry(n, SuppressionReason::Unsubscribe)));
    entries.push(NewSuppression { category: Some("news".to_owned()), ..entry(7, SuppressionReason::Unsubscribe) });
    entries.push(entries[0].clone());
    assert_eq!(store.suppress(&entries).await.expect("written"), Written { added: 401, changed: 0, unchanged: 1 });
    assert_eq!(store.suppress(&entries).await.expect("written"), Written { added: 0, changed: 0, unchanged: 402 });
    // Two at once, in opposite orders.
    let mut reversed: Vec<_> = entries.iter().rev().cloned().collect();
    reversed.iter_mut().for_each(|entry| entry.note = Some("again".to_owned()));
    let other = database.store();
    let (one, two) = tokio::join!(store.suppress(&entries), other.suppress(&reversed));
    assert_eq!((one.expect("written").unchanged, two.expect("written").changed), (402, 401));
    let history: (i64, i64) = sqlx::query_as(
        "select count(*) filter (where change = 'added'), count(*) filter (where change = 'changed') from suppression_changes",
    )
    .fetch_one(&database.pool)
    .await
    .expect("an answer");
    assert_eq!(history, (401, 401));
    let lifted = store.lift_suppressions(&[7; 32], None, Some("news"), "operator:eve", None).await.expect("lifted");
    assert_eq!(lifted.len(), 1);
    assert_eq!(store.suppressions_of(&[7; 32]).await.expect("found").len(), 2);
}

fn quoted(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}

const NOTES: [&str; 8] = [
    "plain",
    "=HYPERLINK(\"http://x\",\"y\")",
    "two\r\nlines, \"quoted\"",
    "'already apostrophed",
    "\ttab, and trailing blanks  ",
    "-- + @ é \u{1f600} \u{202e}",
    "@SUM(A1:A9)",
    "'=both",
];

/// Addresses in every spelling, and notes with everything that formats and spreadsheets make something of.
fn file_of(lines: usize) -> String {
    let mut file = "reason,address,note,category,expires_at\n".to_owned();
    for n in 0..lines {
        let address = match n % 4 {
            0 => format!("User.{n}@EXAMPLE.BJ"),
            1 => format!("n{n}@B\u{dc}CHER.example"),
            2 => format!("\u{e9}lise{n}@example.bj"),
            _ => format!("+o'{n}=x@example.bj"),
        };
        let reason = ["hard_bounce", "complaint", "unsubscribe", "operator"][n % 4];
        let category = if n % 4 == 2 { "offres" } else { "" };
        let expires = if n % 5 == 0 { "2999-12-31T23:59:59.123456Z" } else { "" };
        // The guard of a hand-made file is the same: a note that begins with an apostrophe and a sign has one more.
        let note = NOTES[n % NOTES.len()];
        let note = if note == "'=both" { format!("'{note}") } else { note.to_owned() };
        writeln!(file, "{reason},{},{},{category},{expires}", quoted(&address), quoted(&note)).expect("memory");
    }
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_lines_go_out_and_in_again_exactly() {
    const LINES: usize = 10_000;
    let post = Installation::prepare(&[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("in.csv"), file_of(LINES)).expect("written");
    let import = ["suppressions", "import", &path("in.csv"), "--json"];

    let looked = post.run(&[&import[..], &["--dry-run"]].concat()).await.json();
    assert_eq!((&looked["entries"], &looked["imported"]), (&json!(LINES), &json!(false)), "{looked}");
    assert_eq!(post.run(&["suppressions", "list", "--json"]).await.json()["total"], 0);
    let said = post.run(&import).await.json();
    assert_eq!((&said["added"], &said["faults"]), (&json!(LINES), &json!([])), "{said}");
    assert_eq!(post.run(&import).await.json()["unchanged"], LINES, "importing twice changes nothing");

    for (spelling, reason) in [
        ("uSER.0@example.bj", "hard_bounce"),
        ("N1@xn--bcher-kva.example", "complaint"),
        ("\u{c9}LISE2@example.bj", "unsubscribe"),
        ("+O'3=x@EXAMPLE.bj", "operator"),
    ] {
        assert_eq!(reasons(&shown(&post, spelling).await["items"]), [reason], "{spelling}");
    }
    let notes: Vec<String> = sqlx::query_scalar("select distinct note from suppressions")
        .fetch_all(&post.database.pool)
        .await
        .expect("an answer");
    assert_eq!(notes.len(), NOTES.len());
    assert!(NOTES.iter().all(|note| notes.iter().any(|stored| stored == note)), "{notes:?}");

    let exported = post.run(&["suppressions", "export", "--out", &path("out.csv")]).await;
    assert_eq!((exported.code, exported.out.as_str()), (0, "Exported: 10000 entries.\n"), "{exported:?}");
    let first = std::fs::read(path("out.csv")).expect("a file");
    let mut reader = csv::Reader::from_reader(&first[..]);
    for record in reader.records() {
        let record = record.expect("CSV");
        assert!(record.iter().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t'])), "{record:?}");
    }

    let elsewhere = Database::start().await;
    let mut variables = post.variables.clone();
    variables.insert("DATABASE_URL".to_owned(), elsewhere.url().to_owned());
    let said = postrider(&variables, &["suppressions", "import", &path("out.csv"), "--json"]).await.json();
    assert_eq!(said["added"], LINES, "{said}");
    let second = postrider(&variables, &["suppressions", "export"]).await;
    assert_eq!(second.code, 0, "{}", second.err);
    assert!(second.out.as_bytes() == first, "the same bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_are_named_and_nobody_in_them_and_nothing_is_imported_unless_told() {
    let post = Installation::prepare(&[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list.csv").to_str().expect("UTF-8").to_owned();
    let file = "address,reason,expires_at\nsound@example.bj,,\nsecret person@example.bj,,\nsecret@example.bj,bounced,\n\
                secret@example.bj,,tomorrow\nsecret@example.bj\n";
    std::fs::write(&path, file).expect("written");
    let told = |said: &Said| {
        for words in ["line 3, address", "line 4, reason", "hard_bounce", "line 5, expires_at", "line 6: 1 cells"] {
            assert!(said.out.contains(words), "{words}: {said:?}");
        }
        assert!(!said.out.contains("secret") && !said.err.contains("secret"), "{said:?}");
    };
    let said = post.run(&["suppressions", "import", &path]).await;
    told(&said);
    assert!(said.code == 1 && said.out.contains("Nothing was imported"), "{said:?}");
    assert_eq!(post.run(&["suppressions", "list", "--json"]).await.json()["total"], 0);

    let said = post.run(&["suppressions", "import", &path, "--skip-bad", "--by", "eve"]).await;
    told(&said);
    assert!(said.code == 0 && said.out.contains("1 added") && said.out.contains("4 skipped"), "{said:?}");
    let listed = post.run(&["suppressions", "list", "--source", "import", "--json"]).await.json();
    assert_eq!((&listed["total"], &listed["items"][0]["source"]), (&json!(1), &json!("import:eve")), "{listed}");
    let for_people = post.run(&["suppressions", "list"]).await;
    assert!(for_people.out.contains("sound@example.bj") && for_people.out.contains("operator"), "{for_people:?}");
}
