//! The README's Python program works as it is printed.

use std::{fs, process::Command};

use crate::support::installation::Installation;

/// The distribution's Python: `./deploy/dev test` installs pika for that one.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_in_the_readme_publishes_and_the_mail_arrives() {
    let post = Installation::start().await;
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let (_, from_program) = readme.split_once("```python\n").expect("the README holds a Python program");
    let (program, _) = from_program.split_once("```").expect("the program ends");
    let ran = Command::new(PYTHON)
        .args(["-c", program, "reader@example.bj"])
        .env("AMQP_URL", post.broker.url())
        .output()
        .expect("python3 runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let mails = post.mails(1).await;
    assert_eq!(mails[0].envelope_to, "reader@example.bj");
    assert!(mails[0].text.contains("#4711") && mails[0].text.contains("No signal since this morning"));
    post.wait_until_settled().await;
    let shown = post.run(&["messages", "--to", "reader@example.bj", "--json"]).await.json();
    assert_eq!(shown["items"][0]["status"], "sent");
    assert_eq!(shown["items"][0]["request_id"], String::from_utf8_lossy(&ran.stdout).trim());
    post.finish().await;
}
