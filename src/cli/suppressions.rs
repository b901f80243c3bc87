//! `postrider suppressions`: who gets no mail, and why; putting addresses on the list and taking them off it.

/// `postrider suppressions import` and `export`.
mod file;

use std::process::ExitCode;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::json;

use super::{Session, one_line, or_dash, table};
use crate::{
    email::{EmailAddress, SuppressionReason},
    http::{suppression_change_json, suppression_json},
    store::suppressions::{Cursor, NewSuppression, Suppression, SuppressionFilter},
    suppression_file::read_moment,
};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  postrider suppressions list --reason hard_bounce
  postrider suppressions show ada@example.bj
  postrider suppressions add ada@example.bj --expires 30d --note 'asked us to'
  postrider suppressions remove ada@example.bj --reason hard_bounce
  postrider suppressions export --out list.csv
  postrider suppressions import list.csv --dry-run

hard_bounce and complaint stop every mail to an address, unsubscribe and operator only
marketing. An address can be on the list for several reasons at once.")]
pub(super) enum Command {
    /// List entries, newest first.
    List(ListArgs),
    /// Show an address' entries and what was changed about them.
    Show {
        /// The address.
        address: String,
    },
    /// Put an address on the list. What stands there already is renewed or prolonged, never shortened.
    Add(AddArgs),
    /// Take an address off the list, and show what was lifted.
    Remove(RemoveArgs),
    /// Read a CSV file into the list.
    Import(file::ImportArgs),
    /// Write the whole list as CSV.
    Export(file::ExportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Of this address (needs EMAIL_HASH_KEY).
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// For this reason.
    #[arg(long, value_parser = reasons())]
    reason: Option<String>,
    /// From this source: ses, smtp, operator, operator:NAME ...
    #[arg(long)]
    source: Option<String>,
    /// Where an earlier list ended.
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    after: Option<Cursor>,
    /// At most this many; 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The address.
    address: String,
    /// Why. Operator and unsubscribe stop only marketing (unsubscribe with a category only that), the others every mail.
    #[arg(long, default_value = SuppressionReason::Operator.name(), value_parser = reasons())]
    reason: String,
    /// What was unsubscribed from.
    #[arg(long)]
    category: Option<String>,
    /// Until when: 12h or 30d from now, a date, or a time such as 2026-12-24T18:00:00Z. Without it: for ever.
    #[arg(long, value_name = "TIME", value_parser = end)]
    expires: Option<DateTime<Utc>>,
    /// A word to whoever looks at it later. Kept until it is anonymised: no personal data.
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    by: ByArgs,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The address.
    address: String,
    /// Only what is there for this reason.
    #[arg(long, value_parser = reasons())]
    reason: Option<String>,
    /// Only what is there for this category.
    #[arg(long)]
    category: Option<String>,
    /// Why. Kept until it is anonymised: no personal data.
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    by: ByArgs,
}

/// Who does what is kept as long as the audit.
#[derive(Debug, Args)]
pub(super) struct ByArgs {
    /// Who does it: kept in the history.
    #[arg(long = "by", value_name = "NAME", env = "USER", default_value = "cli", hide_env_values = true)]
    name: String,
}

impl ByArgs {
    pub(super) fn operator(&self) -> String {
        format!("operator:{}", self.name)
    }
}

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(SuppressionReason::ALL.iter().map(|reason| reason.name()))
}

fn cursor(text: &str) -> Result<Cursor, String> {
    Cursor::from_text(text).ok_or_else(|| "not where a list ended: use what an earlier one said".to_owned())
}

fn end(text: &str) -> Result<DateTime<Utc>, String> {
    let now = Utc::now();
    end_at(text, now).filter(|at| *at > now).ok_or_else(|| {
        "not a time to come: use 12h or 30d, a date such as 2026-12-24, or 2026-12-24T18:00:00Z".to_owned()
    })
}

fn end_at(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some(at) = read_moment(text) {
        return Some(at);
    }
    let unit = text.chars().next_back()?;
    let count: i64 = text[..text.len() - unit.len_utf8()].parse().ok().filter(|count| *count > 0)?;
    let ahead = match unit {
        'h' => TimeDelta::try_hours(count),
        'd' => TimeDelta::try_days(count),
        _ => None,
    };
    // As far as a file can say it as well.
    now.checked_add_signed(ahead?).filter(|at| chrono::Datelike::year(at) <= 9999)
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match command {
        Command::List(args) => list(context, args).await,
        Command::Show { address } => show(context, &address).await,
        Command::Add(args) => add(context, args).await,
        Command::Remove(args) => remove(context, args).await,
        Command::Import(args) => file::import(context, args).await,
        Command::Export(args) => file::export(context, args).await,
    }
}

async fn list(context: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let (store, address_hash) = match args.address.as_deref() {
        None => (context.store_without_key().await?, None),
        Some(address) => context.store_to_search_for(address, "--address").await.map(|(s, hash)| (s, Some(hash)))?,
    };
    let reason = args.reason.as_deref().and_then(SuppressionReason::from_name);
    let filter = SuppressionFilter { address_hash, reason, source: args.source, after: args.after, limit: args.limit };
    let page = store.suppressions(&filter).await?;
    let next = page.next.as_ref().map(Cursor::to_text);
    if context.is_json {
        let items: Vec<_> = page.items.iter().map(|entry| suppression_json(entry, true)).collect();
        Session::print_json(&json!({
            "items": items, "total": page.total, "total_is_exact": page.total_is_exact, "next": next,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.items.is_empty() {
        outln!("Nobody on the suppression list matches.");
        return Ok(ExitCode::SUCCESS);
    }
    print_entries(&page.items);
    if let Some(next) = next {
        let more = if page.total_is_exact { "" } else { "more than " };
        outln!("{} of {more}{}; --limit shows more, or --after {next}", page.items.len(), page.total);
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(context: &Session, address: &str) -> anyhow::Result<ExitCode> {
    let (store, hash) = context.store_to_search_for(address, "ADDRESS").await?;
    let entries = store.suppressions_of(&hash).await?;
    let changes = store.suppression_changes(&hash).await?;
    if context.is_json {
        let items: Vec<_> = entries.iter().map(|entry| suppression_json(entry, true)).collect();
        let history: Vec<_> = changes.iter().map(|change| suppression_change_json(change, true)).collect();
        Session::print_json(&json!({ "items": items, "history": history }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if entries.is_empty() {
        outln!("The address is not on the suppression list.");
    } else {
        print_entries(&entries);
    }
    if !changes.is_empty() {
        outln!("\nHistory");
        for c in &changes {
            let category = if c.category.is_empty() { String::new() } else { format!(" ({})", one_line(&c.category)) };
            let note = c.note.as_deref().map(|note| format!(": {}", one_line(note))).unwrap_or_default();
            let at = c.at.format("%Y-%m-%d %H:%M:%S");
            outln!("  {at}  {}  {}{category} by {}{note}", c.change, c.reason, one_line(&c.changed_by));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn add(context: &Session, args: AddArgs) -> anyhow::Result<ExitCode> {
    let (store, hash) = context.store_to_search_for(&args.address, "ADDRESS").await?;
    let address = EmailAddress::parse(&args.address).context("ADDRESS")?;
    let reason = SuppressionReason::from_name(&args.reason).context("--reason")?;
    let category = args.category.filter(|category| !category.is_empty());
    let entry = NewSuppression {
        category: category.clone(),
        note: args.note,
        expires_at: args.expires,
        ..NewSuppression::new(hash, Some(address.as_str().to_owned()), reason, args.by.operator())
    };
    let written = store.suppress_as(&[entry], Some(&args.by.operator()), |_| ()).await?;
    let entries = store.suppressions_of(&hash).await?;
    let stands = entries.iter().find(|entry| entry.reason == reason && entry.category == category);
    if context.is_json {
        let item = stands.map(|entry| suppression_json(entry, true));
        Session::print_json(&json!({ "added": written.added == 1, "changed": written.changed == 1, "item": item }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = match (written.added, written.changed) {
        (1, _) => "Added",
        (_, 1) => "Changed what was on the list",
        _ => "It is on the list already",
    };
    let ends = stands.and_then(|entry| entry.expires_at);
    let until = ends.map(|at| format!(", until {}", at.format("%Y-%m-%d %H:%M UTC"))).unwrap_or_default();
    let stops = if reason.stops_transactional() { "every mail" } else { "marketing mail only" };
    outln!("{what}: {reason}{until}. It stops {stops}.");
    // The database counts microseconds.
    let is_longer = |asked: DateTime<Utc>| ends.is_none_or(|at| at - asked > TimeDelta::seconds(1));
    if args.expires.is_some_and(is_longer) {
        outln!("It lasts longer than you asked for: remove it first to make it shorter.");
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(context: &Session, args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let (store, hash) = context.store_to_search_for(&args.address, "ADDRESS").await?;
    let reason = args.reason.as_deref().and_then(SuppressionReason::from_name);
    let by = args.by.operator();
    let lifted = store.lift_suppressions(&hash, reason, args.category.as_deref(), &by, args.note.as_deref()).await?;
    let left = store.suppressions_of(&hash).await?;
    if context.is_json {
        let shown =
            |entries: &[Suppression]| -> Vec<_> { entries.iter().map(|entry| suppression_json(entry, true)).collect() };
        Session::print_json(&json!({ "lifted": shown(&lifted), "left": shown(&left) }))?;
    } else if lifted.is_empty() {
        outln!("Nothing to lift: the address is not on the suppression list, or not for that.");
    } else {
        outln!("Lifted:");
        print_entries(&lifted);
    }
    if !context.is_json && !left.is_empty() {
        outln!("Still on the list:");
        print_entries(&left);
    }
    Ok(if lifted.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_entries(entries: &[Suppression]) {
    let now = Utc::now();
    let mut rows = table(&["ADDRESS", "REASON", "CATEGORY", "SOURCE", "SINCE", "UNTIL", "NOTE"]);
    for entry in entries {
        let until = match entry.expires_at {
            None => "-".to_owned(),
            Some(at) if entry.is_in_force(now) => at.format("%Y-%m-%d %H:%M").to_string(),
            Some(at) => format!("{} (over)", at.format("%Y-%m-%d %H:%M")),
        };
        rows.add_row([
            entry.address.as_deref().map_or_else(|| "(removed)".to_owned(), one_line),
            entry.reason.to_string(),
            or_dash(entry.category.as_deref().map(one_line)),
            one_line(&entry.source),
            entry.created_at.format("%Y-%m-%d %H:%M").to_string(),
            until,
            or_dash(entry.note.as_deref().map(one_line)),
        ]);
    }
    outln!("{rows}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_a_date_or_how_long_from_now() {
        let now = read_moment("2026-11-24T18:00:00Z").expect("a time");
        for (text, at) in [
            ("12h", "2026-11-25T06:00:00Z"),
            ("30d", "2026-12-24T18:00:00Z"),
            ("2027-01-31", "2027-01-31T00:00:00Z"),
            ("2027-01-31T10:00:00+01:00", "2027-01-31T09:00:00Z"),
        ] {
            assert_eq!(end_at(text, now), read_moment(at), "{text}");
        }
        for wrong in ["", "d", "0d", "-2d", "2w", "tomorrow", "2\u{e9}", "99999999999999999d", "9999999d"] {
            assert_eq!(end_at(wrong, now), None, "{wrong}");
        }
    }
}
