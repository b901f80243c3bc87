//! What somebody writes into a filter or a note is a value of a statement, and never a part of it.

use std::{fs, path::Path};

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::Row;

use crate::support::{daemon::ADMIN_TOKEN, installation::Installation};

const HOSTILE: [&str; 8] = [
    "' or '1'='1",
    "'; drop table suppressions; --",
    "\"; delete from email_messages; --",
    "\\'; select pg_sleep(30); --",
    "$1",
    "%",
    "{}') or true --",
    "x' union select null, null --",
];

/// The text of all sources.
fn sources(folder: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push((path.display().to_string(), fs::read_to_string(&path).expect("text")));
        }
    }
}

#[test]
fn every_statement_is_written_in_the_source() {
    // sqlx takes a text that is made at run time only in this wrapper; without it what is not a literal does not compile.
    let mut all = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut all);
    assert!(all.iter().any(|(_, text)| text.contains("sqlx::query!(")), "the sources are looked at");
    // Rights are given in statements that take no parameters; their names are quoted by the database itself.
    for (file, text) in all.iter().filter(|(file, _)| !file.ends_with("src/store/grants.rs")) {
        assert!(!text.contains("AssertSqlSafe"), "{file} makes a statement at run time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_finds_what_is_called_so_and_a_note_is_kept_as_it_is() {
    let post = Installation::start().await;
    let daemon = post.daemon();
    for (n, hostile) in HOSTILE.iter().enumerate() {
        let entry = json!({"address": format!("n{n}@example.bj"), "reason": "operator", "note": hostile});
        let (status, _) = daemon.post("/api/v1/email/suppressions", ADMIN_TOKEN, &entry).await;
        assert!(status.is_success(), "{hostile}: {status}");
        for (path, name) in [
            ("messages", "template"),
            ("messages", "source"),
            ("dead-letters", "template"),
            ("dead-letters", "source"),
            ("suppressions", "source"),
            ("changes", "by"),
            ("changes", "target"),
        ] {
            let path = format!("/api/v1/email/{path}");
            let answer =
                daemon.ask(Method::GET, &path, ADMIN_TOKEN, |request| request.query(&[(name, *hostile)])).await;
            assert!(matches!(answer.status, StatusCode::OK | StatusCode::BAD_REQUEST), "{path} {name}={hostile}");
            if answer.status == StatusCode::OK {
                assert_eq!(answer.json()["items"].as_array().map(Vec::len), Some(0), "{path} {name}={hostile}");
            }
        }
    }
    let rows = sqlx::query("select note from suppressions order by address").fetch_all(&post.database.pool).await;
    let notes: Vec<String> = rows.expect("the table is there").iter().map(|row| row.get(0)).collect();
    assert_eq!(notes, HOSTILE);
    post.finish().await;
}
