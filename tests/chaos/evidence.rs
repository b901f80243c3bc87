//! What is shown of a broken contract: the mail, its timeline, and what was said to the relay about it. Addresses are masked.

use crate::{
    audit,
    ledger::{Facts, Violation},
    support::{installation::Installation, relay::RelayLog},
};

/// More tell nothing new.
const SHOWN_MAX: usize = 6;

/// A few of the violations, with all that is known of them.
pub async fn of(found: &[Violation], post: &Installation, facts: &Facts) -> Vec<String> {
    let mut shown = Vec::new();
    for violation in found.iter().take(SHOWN_MAX) {
        shown.push(about(violation, post, facts).await);
    }
    if found.len() > SHOWN_MAX {
        shown.push(format!("... and {} more", found.len() - SHOWN_MAX));
    }
    shown
}

async fn about(violation: &Violation, post: &Installation, facts: &Facts) -> String {
    let mut lines = vec![format!("{:?}: {}", violation.fault, violation.words)];
    let Some(request) = violation.request else { return lines.remove(0) };
    let recipient = violation.recipient.as_deref().unwrap_or_default();
    lines.push(format!("    request {request} to {}", masked(recipient)));
    for row in facts.rows.iter().filter(|row| row.request == request) {
        let reason = row.reason.as_deref().unwrap_or("-");
        let (status, settlement, held) = (&row.status, &row.settlement, row.held);
        lines.push(format!(
            "    row {} {}: {status}, held {held}, {settlement}, {reason}",
            row.id,
            masked(&row.recipient)
        ));
    }
    for line in audit::history(&post.database.pool, request, recipient).await {
        lines.push(format!("    timeline {line}"));
    }
    for letter in facts.letters.iter().filter(|letter| letter.request == Some(request)) {
        lines.push(format!("    dead letter: {}", letter.reason));
    }
    for send in facts.sends.iter().filter(|send| send.request == request && send.recipient == recipient) {
        let (begun, dot, answered) = (send.begun_ms, send.dot_ms, send.answered_ms);
        lines.push(format!(
            "    relay: MAIL at {}, final dot {} ms later, answered {}, accepted {}",
            time(begun),
            dot - begun,
            answered.map_or("never".to_owned(), |at| format!("{} ms later", at - dot)),
            send.accepted
        ));
    }
    for cut in &facts.cuts {
        for row in cut.rows.iter().filter(|row| row.recipient == recipient) {
            if facts.rows.iter().any(|known| known.id == row.row && known.request == request) {
                let (status, at, touched) = (&row.status, time(cut.at_ms), time(row.touched_ms));
                lines.push(format!("    cut at {at}: {status} since {touched}, excuses {}", cut.excuses));
            }
        }
    }
    lines.extend(post.relay.look(|log| said(log, recipient)));
    lines.join("\n")
}

/// The dialogue of the connections that carried mails to this recipient, from RCPT on.
fn said(log: &RelayLog, recipient: &str) -> Vec<String> {
    if recipient.is_empty() || recipient.starts_with("noc@") {
        return Vec::new();
    }
    let starts = log.said.iter().enumerate().filter(|(_, said)| !said.by_relay && said.line.contains(recipient));
    let excerpt = starts.flat_map(|(index, start)| {
        let of_connection = log.said[index..].iter().filter(move |said| said.connection == start.connection);
        of_connection.take(7).map(move |said| {
            let who = if said.by_relay { "<" } else { ">" };
            format!("    #{} {who} {}", said.connection, said.line.replace(recipient, &masked(recipient)))
        })
    });
    excerpt.take(40).collect()
}

fn masked(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{}***@{domain}", local.chars().take(4).collect::<String>()),
        None => "***".to_owned(),
    }
}

fn time(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map(|at| at.format("%H:%M:%S%.3f").to_string()).unwrap_or_default()
}
