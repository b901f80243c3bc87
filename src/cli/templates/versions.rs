//! `postrider templates versions|show|diff|activate|rollback|deactivate`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::super::{Session, one_line, or_dash, suppressions::ByArgs, table};
use crate::{
    http::{difference_json, switch_json, version_list_json, whole_version_json},
    store::{
        Store,
        templates::{change::Expects, list::VersionState},
    },
    templates::TemplateSource,
    versions::{self, Activated, Editor, Severity, VersionError},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Which template.
    key: String,
    /// Versions before this one.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    before: Option<i32>,
    /// At most this many; 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// Which template.
    key: String,
    /// Which version (default: the active one, else the newest).
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    number: Option<i32>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DiffArgs {
    /// Which template.
    key: String,
    /// The older version (default: the active one).
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    from: Option<i32>,
    /// The newer version (default: the newest).
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    to: Option<i32>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ActivateArgs {
    /// Which template.
    key: String,
    /// Which version.
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    number: i32,
    /// Activate it although requests as they are sent now would fail.
    #[arg(long)]
    accept_findings: bool,
    /// Only if this version is active now; 0: none.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i32).range(0..))]
    expected_active: Option<i32>,
    #[command(flatten)]
    by: ByArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SwitchArgs {
    /// Which template.
    key: String,
    /// Only if this version is active now; 0: none.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i32).range(0..))]
    expected_active: Option<i32>,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn list(context: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let page = store.template_versions(&args.key, args.before, args.limit).await?;
    if page.total == 0 {
        bail!("there is no template {}", args.key);
    }
    if context.is_json {
        Session::print_json(&version_list_json(&page))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["VERSION", "STATE", "SAVED", "BY", "LAST ACTIVATED", "BY", "CHECKSUM"]);
    let minute = "%Y-%m-%d %H:%M";
    for line in &page.items {
        let state = match line.state {
            VersionState::Active => "active",
            VersionState::Former => "former",
            VersionState::Draft => "draft",
        };
        rows.add_row([
            line.version.to_string(),
            state.to_owned(),
            line.created_at.format(minute).to_string(),
            or_dash(line.created_by.as_deref().map(one_line)),
            or_dash(line.activated_at.map(|at| at.format(minute).to_string())),
            or_dash(line.activated_by.as_deref().map(one_line)),
            hex::encode(&line.checksum[..line.checksum.len().min(6)]),
        ]);
    }
    outln!("{rows}");
    if let Some(next) = page.next {
        outln!("{} of {}; --limit shows more, or --before {next}", page.items.len(), page.total);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn show(context: &Session, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let version = match args.number {
        Some(version) => version,
        None => active_or_newest(&store, &args.key).await?,
    };
    let source = source(&store, &args.key, version).await?;
    let Some(line) = store.template_version_line(&args.key, version).await? else {
        bail!("there is no version {version} of template {}", args.key);
    };
    if context.is_json {
        Session::print_json(&whole_version_json(&line, source))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sample = serde_json::to_string_pretty(&source.sample)? + "\n";
    let shared = |kind: &'static str, partials: &std::collections::BTreeMap<String, String>| {
        let named = partials.iter().map(move |(name, text)| (format!("_shared/{kind}/{name}.hbs"), text.clone()));
        named.collect::<Vec<_>>()
    };
    let partials = [shared("html", &source.partials_html), shared("text", &source.partials_text)].concat();
    let files = [
        ("manifest.toml", source.manifest_toml),
        ("subject.hbs", source.subject),
        ("html.hbs", source.html),
        ("text.hbs", source.text),
        ("sample.json", sample),
    ];
    for (name, text) in files.into_iter().map(|(name, text)| (name.to_owned(), text)).chain(partials) {
        outln!("==> {name} <==\n{}\n", text.trim_end_matches('\n'));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn diff(context: &Session, args: DiffArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let from = match args.from {
        Some(from) => from,
        None => active_or_newest(&store, &args.key).await?,
    };
    let to = match args.to {
        Some(to) => to,
        None => newest(&store, &args.key).await?,
    };
    let parts =
        versions::difference::between(&source(&store, &args.key, from).await?, &source(&store, &args.key, to).await?);
    if context.is_json {
        Session::print_json(&difference_json(from, to, parts))?;
        return Ok(ExitCode::SUCCESS);
    }
    if parts.is_empty() {
        outln!("Versions {from} and {to} are the same.");
    }
    for part in parts {
        out!("{}", part.unified);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn activate(context: &Session, args: ActivateArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let editor = Editor {
        by: args.by.operator(),
        expects: expects(args.expected_active),
        accepts_findings: args.accept_findings,
    };
    let done = versions::activate(&store, &args.key, args.number, &editor).await;
    match done {
        Ok(activated) => print_switch(context, args.key, activated),
        Err(VersionError::Risky(findings)) => {
            for finding in findings.iter().filter(|finding| finding.severity == Severity::Risk) {
                outln!("{finding}");
            }
            bail!(
                "requests as they are sent now would fail, nothing was changed; --accept-findings activates it all the same"
            )
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn roll_back(context: &Session, args: SwitchArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let switched = versions::roll_back(&store, &args.key, &editor(&args)).await?;
    print_switch(context, args.key, Activated { switched, findings: Vec::new() })
}

pub(super) async fn deactivate(context: &Session, args: SwitchArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let switched = versions::deactivate(&store, &args.key, &editor(&args)).await?;
    print_switch(context, args.key, Activated { switched, findings: Vec::new() })
}

fn editor(args: &SwitchArgs) -> Editor {
    Editor { by: args.by.operator(), expects: expects(args.expected_active), accepts_findings: false }
}

fn expects(expected_active: Option<i32>) -> Expects {
    expected_active.map_or(Expects::Anything, |version| Expects::Exactly(Some(version).filter(|v| *v != 0)))
}

fn print_switch(context: &Session, key: String, activated: Activated) -> anyhow::Result<ExitCode> {
    if context.is_json {
        Session::print_json(&switch_json(key, activated))?;
        return Ok(ExitCode::SUCCESS);
    }
    for finding in &activated.findings {
        outln!("{finding}");
    }
    let before = activated.switched.before.map_or_else(|| "none".to_owned(), |version| version.to_string());
    match activated.switched.now {
        Some(version) if activated.switched.before == Some(version) => {
            outln!("Version {version} of {key} is active already.");
        }
        Some(version) => outln!("Version {version} of {key} is active (before: {before})."),
        None => outln!("No version of {key} is active (before: {before}); its requests become dead letters."),
    }
    Ok(ExitCode::SUCCESS)
}

async fn active_or_newest(store: &Store, key: &str) -> anyhow::Result<i32> {
    match store.active_template(key).await? {
        Some(active) => Ok(active.version),
        None => newest(store, key).await,
    }
}

async fn newest(store: &Store, key: &str) -> anyhow::Result<i32> {
    match store.newest_template_version(key).await? {
        Some(newest) => Ok(newest.version),
        None => bail!("there is no template {key}"),
    }
}

async fn source(store: &Store, key: &str, version: i32) -> anyhow::Result<TemplateSource> {
    match store.template_version(key, version).await? {
        Some(stored) => Ok(versions::source_of(&stored)?),
        None => bail!("there is no version {version} of template {key}"),
    }
}
