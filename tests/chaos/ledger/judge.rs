//! From the facts to the account, mail by mail.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::{Account, Cut, CutRow, Expected, Facts, Fault, Row, Send, Violation};

/// A daemon that was killed may have bytes on their way that the relay reads a moment later.
const UNDERWAY_MS: i64 = 500;
/// Two clocks of one machine are read one after the other.
const CLOCK_MS: i64 = 20;
/// A daemon looks for a database that is back after five seconds at most, and writes its journal before it asks it anything.
const CATCHING_UP_MS: i64 = 10_000;

type Key<'a> = (Uuid, &'a str);

/// Draws up the account.
pub fn judge(facts: &Facts) -> (Account, Vec<Violation>) {
    let mut judge = Judge::new(facts);
    for expected in &facts.expected {
        judge.one(expected);
    }
    judge.strangers();
    judge.letters();
    judge.at_the_cuts();
    if let Some(most) = facts.repeats_max
        && judge.account.repeated > most
    {
        let words = format!("{} repeats, where this case allows {most}", judge.account.repeated);
        judge.found.push(Violation::general(Fault::Repeated, words));
    }
    if judge.account.p0_away < facts.p0_away_min {
        let words = format!("{} incidents went out while the database was away", judge.account.p0_away);
        judge.found.push(Violation::general(Fault::Away, words));
    }
    (judge.account, judge.found)
}

struct Judge<'a> {
    facts: &'a Facts,
    sends: HashMap<Key<'a>, Vec<&'a Send>>,
    rows: HashMap<Key<'a>, &'a Row>,
    lettered: BTreeMap<Uuid, Vec<&'a str>>,
    cut_rows: HashMap<Uuid, Vec<(&'a Cut, &'a CutRow)>>,
    /// Requests that owe a dead letter.
    owing: BTreeSet<Uuid>,
    account: Account,
    found: Vec<Violation>,
}

impl<'a> Judge<'a> {
    fn new(facts: &'a Facts) -> Self {
        let mut sends: HashMap<Key<'a>, Vec<&'a Send>> = HashMap::new();
        for send in &facts.sends {
            sends.entry((send.request, &send.recipient)).or_default().push(send);
        }
        sends.values_mut().for_each(|sends| sends.sort_by_key(|send| send.dot_ms));
        let rows = facts.rows.iter().map(|row| ((row.request, row.recipient.as_str()), row)).collect();
        let mut lettered: BTreeMap<Uuid, Vec<&'a str>> = BTreeMap::new();
        for letter in &facts.letters {
            if let Some(request) = letter.request {
                lettered.entry(request).or_default().push(&letter.reason);
            }
        }
        let mut cut_rows: HashMap<Uuid, Vec<_>> = HashMap::new();
        for cut in &facts.cuts {
            for row in &cut.rows {
                cut_rows.entry(row.row).or_default().push((cut, row));
            }
        }
        let account = Account { requests: facts.requests, expected: facts.expected.len(), ..Account::default() };
        Self { facts, sends, rows, lettered, cut_rows, owing: BTreeSet::new(), account, found: Vec::new() }
    }

    fn find(&mut self, fault: Fault, expected: &Expected, words: impl Into<String>) {
        let (request, recipient) = (Some(expected.request), Some(expected.recipient.clone()));
        self.found.push(Violation { fault, request, recipient, words: words.into() });
    }

    /// One mail that the broker has accepted: it ends as exactly one of sent, dead and held.
    fn one(&mut self, expected: &Expected) {
        let key = (expected.request, expected.recipient.as_str());
        let sends = self.sends.get(&key).cloned().unwrap_or_default();
        let accepted: Vec<&Send> = sends.iter().copied().filter(|send| send.accepted).collect();
        self.account.at_relay += accepted.len();
        self.away(expected, &accepted);
        match self.rows.get(&key).copied() {
            None => self.without_row(expected, &accepted),
            Some(row) => {
                self.end(expected, row, &accepted);
                self.repeats(expected, Some(row), &accepted);
                self.words_fit(expected, row, &sends);
            }
        }
    }

    fn without_row(&mut self, expected: &Expected, accepted: &[&Send]) {
        if !accepted.is_empty() {
            self.find(Fault::MailWithoutRow, expected, "the relay has it and no row does");
        }
        self.repeats(expected, None, accepted);
        let letters = self.lettered.get(&expected.request).cloned().unwrap_or_default();
        if letters.is_empty() && self.facts.queued > 0 {
            self.account.stuck += 1;
            self.find(Fault::Stuck, expected, "no row and no dead letter knows it; some are still in their queues");
            return;
        }
        if letters.is_empty() {
            self.account.lost += 1;
            self.find(Fault::Lost, expected, "no row and no dead letter knows it");
            return;
        }
        self.account.dead += 1;
        self.owing.insert(expected.request);
        if let Some(reason) = letters.iter().find(|reason| !self.facts.reasons.contains(*reason)) {
            let words = format!("a dead letter without rows, reason {reason}");
            self.find(Fault::Reason, expected, words);
        }
    }

    fn end(&mut self, expected: &Expected, row: &Row, accepted: &[&Send]) {
        if row.settlement == "pending" {
            self.find(Fault::Stuck, expected, format!("{}, and its settlement is still pending", row.status));
        }
        match row.status.as_str() {
            "sent" => {
                self.account.sent += 1;
                if accepted.is_empty() {
                    self.account.lost += 1;
                    self.find(Fault::SentWithoutMail, expected, "the row says sent; the relay has nothing");
                }
                if expected.refused {
                    self.find(Fault::SentWithoutMail, expected, "sent to an address that the relay refuses");
                }
                if !(1..=1 + self.twins(expected, accepted)).contains(&row.sent_lines) {
                    self.find(Fault::Timeline, expected, format!("{} lines say sent", row.sent_lines));
                }
            }
            "failed" => {
                self.account.dead += 1;
                self.owing.insert(expected.request);
                if !accepted.is_empty() {
                    self.find(Fault::FailedWithMail, expected, "the row says failed; the relay has it");
                }
                let reason = row.reason.as_deref().unwrap_or("none");
                let is_refusal = expected.refused && reason == "rejected";
                if !is_refusal && !self.facts.reasons.contains(reason) {
                    self.find(Fault::Reason, expected, format!("failed: {reason}"));
                }
                if row.lines == 0 {
                    self.find(Fault::Timeline, expected, "failed, and the timeline is empty");
                }
            }
            "unknown" if row.held => {
                self.account.held += 1;
                self.owing.insert(expected.request);
                if row.unknown_lines == 0 {
                    self.find(Fault::Timeline, expected, "held, and no line says unknown");
                }
            }
            other => {
                self.account.stuck += 1;
                self.find(Fault::Stuck, expected, format!("still {other}"));
            }
        }
    }

    fn repeats(&mut self, expected: &Expected, row: Option<&Row>, accepted: &[&Send]) {
        let excused: Vec<bool> = accepted.iter().map(|send| self.is_excused(send)).collect();
        self.account.allowed += excused.iter().filter(|excused| **excused).count();
        let Some((_, earlier)) = accepted.split_last() else { return };
        for (send, excused) in earlier.iter().zip(excused) {
            if !excused && expected.fast && self.was_away(send.dot_ms) {
                self.account.degraded += 1;
                continue;
            }
            self.account.repeated += 1;
            if !excused {
                self.find(Fault::Repeated, expected, "sent again, and nothing excuses it");
            }
        }
        if expected.holds && !earlier.is_empty() {
            self.find(Fault::HeldRepeated, expected, "sent again, where the policy is to hold");
        }
        let Some(row) = row else { return };
        // Before a mail is sent again a line says that nobody knows what became of it; two who could not know of each other
        // have a line each that says what they did.
        let told = row.unknown_lines + (row.sent_lines - 1).clamp(0, self.twins(expected, accepted));
        let unexplained = earlier.iter().filter(|send| !self.was_away(send.dot_ms)).count() as i64;
        let certain = accepted.iter().filter(|send| !self.is_excused(send)).count() as i64;
        if unexplained > told || certain > row.unknown_lines + row.sent_lines.max(1) {
            let (sent, unknown) = (row.sent_lines, row.unknown_lines);
            let words = format!("sent {} times, {unknown} lines say unknown and {sent} sent", accepted.len());
            self.find(Fault::Timeline, expected, words);
        }
    }

    /// How often two daemons may each have taken the mail, or its twin, for theirs: one of the two could not ask the database.
    fn twins(&self, expected: &Expected, accepted: &[&Send]) -> i64 {
        let was_degraded = |send: &Send| {
            let mut outages = self.facts.outages.iter();
            outages.any(|(from, until)| (*from..=*until + CATCHING_UP_MS).contains(&send.dot_ms))
        };
        let pairs = accepted.windows(2).filter(|pair| pair.iter().any(|send| was_degraded(send)));
        if expected.fast { pairs.count() as i64 } else { 0 }
    }

    /// Whether nobody could know what became of this send.
    fn is_excused(&self, send: &Send) -> bool {
        let unanswered = send.answered_ms.is_none_or(|answered| answered - send.dot_ms >= self.facts.patience_ms);
        unanswered
            || self.cut_rows.get(&send.row).is_some_and(|cuts| {
                cuts.iter().any(|(cut, row)| {
                    let is_this_send = match row.status.as_str() {
                        "sending" => row.touched_ms <= send.begun_ms + CLOCK_MS,
                        // Its last byte may still have been on the line when the daemon gave up.
                        _ => row.touched_ms + CLOCK_MS >= send.begun_ms,
                    };
                    cut.excuses && is_this_send && send.dot_ms <= cut.until_ms + UNDERWAY_MS
                })
            })
    }

    fn words_fit(&mut self, expected: &Expected, row: &Row, sends: &[&Send]) {
        for send in sends {
            if send.message_id != row.message_id {
                let words = format!("went out as {}, and the row says {}", send.message_id, row.message_id);
                self.find(Fault::MessageId, expected, words);
            }
            if send.row != row.id {
                self.find(Fault::Content, expected, format!("names row {}, and is row {}", send.row, row.id));
            }
            if let Some(wrong) = &send.wrong {
                self.find(Fault::Content, expected, wrong.clone());
            }
        }
    }

    fn was_away(&self, at_ms: i64) -> bool {
        self.facts.outages.iter().any(|(from, until)| (*from..=*until).contains(&at_ms))
    }

    /// A mail of the fast lane that was asked for and sent while the database was away.
    fn away(&mut self, expected: &Expected, accepted: &[&Send]) {
        let within = |outage: &(i64, i64), at: i64| (outage.0..=outage.1).contains(&at);
        let is_away = expected.fast
            && self.facts.outages.iter().any(|outage| {
                within(outage, expected.published_ms) && accepted.iter().any(|send| within(outage, send.dot_ms))
            });
        self.account.p0_away += usize::from(is_away);
    }

    /// Mails that nobody asked for.
    fn strangers(&mut self) {
        let asked: BTreeSet<Key<'_>> = self.facts.expected.iter().map(|e| (e.request, e.recipient.as_str())).collect();
        for send in self.facts.sends.iter().filter(|send| !asked.contains(&(send.request, send.recipient.as_str()))) {
            self.account.at_relay += usize::from(send.accepted);
            self.found.push(Violation {
                fault: Fault::Content,
                request: Some(send.request),
                recipient: Some(send.recipient.clone()),
                words: send.wrong.clone().unwrap_or_else(|| "a mail that nobody asked for".to_owned()),
            });
        }
    }

    fn letters(&mut self) {
        for request in &self.owing {
            let count = self.lettered.get(request).map_or(0, Vec::len);
            if count != 1 {
                self.found.push(Violation {
                    fault: Fault::Letter,
                    request: Some(*request),
                    recipient: None,
                    words: format!("{count} dead letters, where there must be one"),
                });
            }
        }
        for (request, reasons) in self.lettered.iter().filter(|(request, _)| !self.owing.contains(*request)) {
            self.found.push(Violation {
                fault: Fault::Letter,
                request: Some(*request),
                recipient: None,
                words: format!("a dead letter ({}), and nothing of it has failed", reasons.join(", ")),
            });
        }
    }

    fn at_the_cuts(&mut self) {
        let mut seen = BTreeSet::new();
        for cut in &self.facts.cuts {
            for row in cut.rows.iter().filter(|row| row.status == "sending") {
                // One claim counts once, however often it is cut.
                if !seen.insert((row.row, row.token)) {
                    continue;
                }
                self.account.sending_at_cuts += 1;
                let span = row.touched_ms - CLOCK_MS..=cut.at_ms + UNDERWAY_MS;
                let is_past =
                    self.facts.past_data.iter().any(|p| p.recipient == row.recipient && span.contains(&p.at_ms));
                self.account.past_data_at_cuts += usize::from(is_past);
            }
        }
    }
}
