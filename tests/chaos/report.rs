//! What a case came to: its figures, its verdict, and the table of all of them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::{
    cases,
    ledger::{Account, Fault, Violation},
    stage::Run,
};

/// One case, played.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub name: String,
    pub proves: &'static str,
    pub account: Account,
    pub found: Vec<Violation>,
    pub evidence: Vec<String>,
    pub kills: usize,
    /// Sorted.
    pub recoveries_ms: Vec<i64>,
    pub seconds: u64,
    /// The check itself is checked: it must find one of these, and the case counts in no total.
    pub must_find: Vec<Fault>,
}

impl Report {
    /// An empty one of this run.
    pub fn of(run: &Run) -> Self {
        Self { name: run.name.clone(), proves: run.proves, ..Self::default() }
    }

    /// Of a case that did not come to its end.
    pub fn broken_off(name: &str, proves: &'static str, words: String) -> Self {
        let found = vec![Violation::general(Fault::Plan, words.clone())];
        Self { name: name.to_owned(), proves, found, evidence: vec![words], ..Self::default() }
    }

    /// Whether it went as it must.
    pub fn is_good(&self) -> bool {
        if self.must_find.is_empty() {
            self.found.is_empty()
        } else {
            self.found.iter().any(|violation| self.must_find.contains(&violation.fault))
        }
    }

    /// In a word or two.
    pub fn verdict(&self) -> String {
        let mut kinds: Vec<Fault> = self.found.iter().map(|violation| violation.fault).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kinds: Vec<String> = kinds.iter().map(|fault| format!("{fault:?}")).collect();
        match (self.is_good(), self.must_find.is_empty()) {
            (true, true) => "kept".to_owned(),
            (true, false) => format!("seen: {}", kinds.join(" ")),
            (false, true) => format!("BROKEN: {}", kinds.join(" ")),
            (false, false) => "NOT SEEN".to_owned(),
        }
    }

    fn figures(&self) -> Vec<(&'static str, usize)> {
        let a = &self.account;
        vec![
            ("requests", a.requests),
            ("mails expected", a.expected),
            ("at relay", a.at_relay),
            ("sent", a.sent),
            ("dead", a.dead),
            ("held", a.held),
            ("lost", a.lost),
            ("repeated", a.repeated),
            ("allowed", a.allowed),
            ("sending at cuts", a.sending_at_cuts),
            ("past DATA at cuts", a.past_data_at_cuts),
            ("P0 while away", a.p0_away),
            ("degraded repeats", a.degraded),
            ("kills", self.kills),
            ("stuck", a.stuck),
        ]
    }

    fn recovered(&self) -> String {
        let all = &self.recoveries_ms;
        match (all.get(all.len() / 2), all.last()) {
            (Some(median), Some(longest)) => format!("{median}/{longest}"),
            _ => "-".to_owned(),
        }
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "case": self.name, "proves": self.proves, "recoveries_ms": self.recoveries_ms, "seconds": self.seconds,
            "verdict": self.verdict(), "kept": self.is_good(), "evidence": self.evidence,
        });
        for (name, figure) in self.figures() {
            object[name] = json!(figure);
        }
        object
    }
}

/// All cases of one invocation.
pub struct Reports {
    pub broker: String,
    pub seed: u64,
    pub full: bool,
    pub seconds: u64,
    pub all: Vec<Report>,
}

impl Reports {
    /// Whether every case went as it must.
    pub fn are_good(&self) -> bool {
        self.all.iter().all(Report::is_good)
    }

    /// The sums over all cases but those that check the check.
    pub fn totals(&self) -> Report {
        let mut total = Report { name: "total".to_owned(), ..Report::default() };
        for report in self.all.iter().filter(|report| report.must_find.is_empty()) {
            let (sum, one) = (&mut total.account, &report.account);
            sum.requests += one.requests;
            sum.expected += one.expected;
            sum.at_relay += one.at_relay;
            sum.sent += one.sent;
            sum.dead += one.dead;
            sum.held += one.held;
            sum.lost += one.lost;
            sum.stuck += one.stuck;
            sum.repeated += one.repeated;
            sum.allowed += one.allowed;
            sum.sending_at_cuts += one.sending_at_cuts;
            sum.past_data_at_cuts += one.past_data_at_cuts;
            sum.p0_away += one.p0_away;
            sum.degraded += one.degraded;
            total.kills += report.kills;
            total.recoveries_ms.extend(&report.recoveries_ms);
            total.seconds += report.seconds;
        }
        total.recoveries_ms.sort_unstable();
        total
    }

    /// What broke the promise that no case takes more than a third of all requests, in the full form.
    pub fn imbalance(&self) -> Option<String> {
        let all = self.totals().account.requests;
        let largest = self.all.iter().max_by_key(|report| report.account.requests)?;
        let is_lopsided = largest.account.requests * 3 > all;
        is_lopsided.then(|| format!("{} has more than a third of all {all} requests", largest.name))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let totals = self.totals();
        // Long headings in several lines, or the table is too wide for any screen.
        let mut header = vec!["case".to_owned(), "Rabbit\nMQ".to_owned()];
        header.extend(totals.figures().iter().map(|(name, _)| name.replace(' ', "\n")));
        header.extend(["recovered\nafter ms\nmedian/max", "s", "verdict"].map(str::to_owned));
        let columns = header.len();
        table.set_header(header);
        let verdict = |report: &Report| {
            if report.name == "total" {
                let broken = self.all.iter().filter(|report| !report.is_good()).count();
                if broken == 0 { "kept".to_owned() } else { format!("BROKEN in {broken}") }
            } else {
                report.verdict()
            }
        };
        for report in self.all.iter().chain([&totals]) {
            let name = report.name.trim_start_matches(cases::PREFIX);
            let mut row = vec![name.to_owned(), self.broker.clone()];
            row.extend(report.figures().iter().map(|(_, figure)| figure.to_string()));
            row.extend([report.recovered(), report.seconds.to_string(), verdict(report)]);
            table.add_row(row);
        }
        for column in table.column_iter_mut().take(columns - 1).skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "rabbitmq": self.broker, "seed": self.seed, "form": if self.full { "full" } else { "short" },
            "seconds": self.seconds, "kept": self.are_good(), "total": self.totals().to_json(),
            "cases": self.all.iter().map(Report::to_json).collect::<Vec<_>>(),
        })
    }
}
