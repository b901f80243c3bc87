//! What is printed of a plan and of a run: letters by template and version, and by why not.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::{Session, or_dash, table};
use crate::{
    email::Reason,
    replay::run::Ended,
    store::{
        Store, StoreError,
        replay::{ItemFilter, ItemResult, PlanCounts, Planned, Run, RunItem, RunState},
    },
};

/// Letters that are read together.
const PAGE: i64 = 1000;

/// How a command left its run.
pub(super) enum Outcome {
    /// To a daemon, from the beginning.
    Left,
    /// So.
    Ended(Ended),
}

/// One letter of a plan.
pub(super) fn planned_json(planned: &Planned) -> Value {
    let (letter, skip) = (&planned.letter, planned.skip());
    json!({
        "id": letter.id, "request_id": letter.request_id, "template_key": letter.template_key,
        "reason": letter.reason.map(Reason::name), "template_version": planned.version,
        "result": if skip.is_some() { "skipped" } else { "open" }, "why": skip.map(crate::store::replay::Skip::name),
        "words": skip.map(|skip| skip.to_string()),
    })
}

fn item_json(item: &RunItem) -> Value {
    json!({
        "id": item.dead_letter_id, "request_id": item.request_id, "template_key": item.template_key,
        "reason": item.reason, "template_version": item.template_version, "result": item.result.name(),
        "why": item.why, "words": item.detail,
    })
}

/// A plan, for people.
pub(in crate::cli) fn plan(plan: &PlanCounts) {
    if plan.letters == 0 {
        return nothing();
    }
    outln!("Would be replayed: {} of {}.", plan.open, plan.letters);
    if plan.open > 0 {
        let mut going: BTreeMap<(String, String), i32> = BTreeMap::new();
        for group in &plan.groups {
            let key = (or_dash(group.template_key.as_deref()), or_dash(group.template_version));
            *going.entry(key).or_default() += group.letters;
        }
        if plan.in_other_groups > 0 {
            going.insert(("(others)".to_owned(), "-".to_owned()), plan.in_other_groups);
        }
        by_template(&going);
    }
    by_words("Skipped", plan.skips.iter().map(|skip| (skip.words.clone(), skip.letters)));
}

fn nothing() {
    outln!("No letter that waits matches; `postrider dead list` shows all.");
}

fn by_template(going: &BTreeMap<(String, String), i32>) {
    let mut rows = table(&["LETTERS", "TEMPLATE", "VERSION"]);
    for ((template, version), letters) in going {
        rows.add_row([&letters.to_string(), template, version]);
    }
    outln!("{rows}");
}

fn by_words(title: &str, words: impl IntoIterator<Item = (String, i32)>) {
    let words: Vec<(String, i32)> = words.into_iter().collect();
    let sum: i32 = words.iter().map(|(_, letters)| letters).sum();
    if sum == 0 {
        return;
    }
    outln!("{title}: {sum}.");
    let mut rows = table(&["LETTERS", "WHY"]);
    for (words, letters) in words {
        rows.add_row([&letters.to_string(), &words]);
    }
    outln!("{rows}");
}

/// All letters of a run, page by page.
async fn each_item(store: &Store, run: Uuid, mut each: impl FnMut(RunItem)) -> Result<(), StoreError> {
    let mut filter = ItemFilter { limit: PAGE, ..ItemFilter::default() };
    loop {
        let page = store.run_items(run, &filter).await?;
        page.items.into_iter().for_each(&mut each);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(()),
        }
    }
}

/// A run with its letters, for programs.
pub(super) async fn json(store: &Store, run: &Run) -> anyhow::Result<()> {
    let mut items = Vec::new();
    each_item(store, run.id, |item| items.push(item_json(&item))).await?;
    Session::print_json(&json!({
        "dry_run": false, "run": run.id, "state": run.state.name(), "total": run.letters, "open": run.open(),
        "replayed": run.replayed, "skipped": run.skipped, "failed": run.failed, "items": items,
    }))
}

/// A run and how it goes on, for people.
pub(super) async fn people(store: &Store, run: &Run, outcome: &Outcome) -> anyhow::Result<()> {
    if run.letters == 0 {
        nothing();
        return Ok(());
    }
    if let Outcome::Left = outcome {
        outln!("Run {} is left to a daemon: {} letters, {} a second.", run.id, run.open(), run.rate);
        outln!("How far it is: postrider dead run show {}", run.id);
        return Ok(());
    }
    let mut going: BTreeMap<(String, String), i32> = BTreeMap::new();
    let (mut skipped, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let mut only = None;
    each_item(store, run.id, |item| {
        let words = || item.detail.clone().or_else(|| item.why.clone()).unwrap_or_default();
        match item.result {
            ItemResult::Open => {}
            ItemResult::Replayed => {
                let key = (or_dash(item.template_key.as_deref()), or_dash(item.template_version));
                *going.entry(key).or_default() += 1;
                only = item.request_id;
            }
            ItemResult::Skipped => *skipped.entry(words()).or_default() += 1,
            ItemResult::Failed => *failed.entry(words()).or_default() += 1,
        }
    })
    .await?;
    outln!("Replayed: {} of {}; the broker has confirmed each.", run.replayed, run.letters);
    if run.replayed > 0 {
        by_template(&going);
    }
    by_words("Skipped", skipped);
    by_words("Failed", failed);
    how_it_goes_on(run, outcome);
    match (run.replayed, only) {
        (0, _) => {}
        (1, Some(request)) => outln!("What becomes of it: postrider messages --request {request}"),
        _ => outln!("What fails again is a new letter: postrider dead list --state waiting"),
    }
    Ok(())
}

fn how_it_goes_on(run: &Run, outcome: &Outcome) {
    let (id, open) = (run.id, run.open());
    if run.failed > 0 {
        outln!("{} not done: run the same command again; nothing is sent twice by it.", run.failed);
    }
    if open == 0 {
        return;
    }
    match (outcome, run.state) {
        (Outcome::Ended(Ended::Away(words)), RunState::Running) => {
            outln!("{open} not done: {words}");
            outln!("A daemon goes on as soon as that is mended; how far it is: postrider dead run show {id}");
            outln!("Or give it up: postrider dead run cancel {id}");
        }
        (_, RunState::Paused) => {
            outln!("{open} not done, and the run is paused. To let a daemon go on: postrider dead run resume {id}");
            outln!("To give it up: postrider dead run cancel {id}");
        }
        (_, RunState::Cancelled) => outln!("{open} not done: the run was given up."),
        (_, RunState::Planned | RunState::Running | RunState::Done) => {
            outln!("{open} not done: somebody else is at it. How far it is: postrider dead run show {id}");
        }
    }
}
