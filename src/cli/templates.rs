//! `postrider templates`: those of a folder, and the versions in the database.

/// Versions: list, show, compare, activate, roll back, deactivate.
mod versions;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow, bail};
use chrono::Utc;
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::{Session, suppressions::ByArgs, table};
use crate::{
    reload,
    templates::{CompiledTemplate, Inspection, System, inspect, read_folder},
};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  postrider templates lint
  postrider templates render billing_invoice_monthly --part text
  postrider templates render support_ticket_created --variables mine.json --part html > preview.html
  postrider templates sync --activate
  postrider templates versions support_ticket_created
  postrider templates diff support_ticket_created --from 3 --to 4
  postrider templates activate support_ticket_created 4
  postrider templates rollback support_ticket_created")]
pub(super) enum Command {
    /// Bring the templates of a folder into the database: absent keys become active, other changes drafts.
    Sync {
        /// The folder (default: EMAIL_TEMPLATES_DIR).
        folder: Option<PathBuf>,
        /// Make the folder's content active at once, everywhere.
        #[arg(long)]
        activate: bool,
        #[command(flatten)]
        by: ByArgs,
    },
    /// Check the templates of a folder, without a database.
    Lint {
        /// The folder (default: EMAIL_TEMPLATES_DIR).
        folder: Option<PathBuf>,
    },
    /// Render a template of a folder with its sample or your variables, without a database.
    Render {
        /// Which template.
        key: String,
        /// The folder (default: EMAIL_TEMPLATES_DIR).
        #[arg(long)]
        folder: Option<PathBuf>,
        /// A JSON file of variables (default: the template's sample).
        #[arg(long, value_name = "FILE")]
        variables: Option<PathBuf>,
        /// What the reader would ask for, for instance en-GB (default: the template's own).
        #[arg(long)]
        locale: Option<String>,
        /// Print one part only.
        #[arg(long, value_enum)]
        part: Option<PartChoice>,
    },
    /// List the versions of a template, newest first.
    Versions(versions::ListArgs),
    /// Show a version with all that it is made of.
    Show(versions::ShowArgs),
    /// Show what changed between two versions.
    Diff(versions::DiffArgs),
    /// Make a version active, on every daemon within a second.
    Activate(versions::ActivateArgs),
    /// Return to the version that was active before. Rolling back twice goes back twice.
    Rollback(versions::SwitchArgs),
    /// Make no version active: requests for the template become dead letters until one is, but for those that pin a version.
    Deactivate(versions::SwitchArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PartChoice {
    Subject,
    Html,
    Text,
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match command {
        Command::Sync { folder, activate, by } => sync(context, folder, activate, &by.operator()).await,
        Command::Lint { folder } => lint_folder(context, folder),
        Command::Render { key, folder, variables, locale, part } => {
            render(context, &key, folder, variables, locale.as_deref(), part)
        }
        Command::Versions(args) => versions::list(context, args).await,
        Command::Show(args) => versions::show(context, args).await,
        Command::Diff(args) => versions::diff(context, args).await,
        Command::Activate(args) => versions::activate(context, args).await,
        Command::Rollback(args) => versions::roll_back(context, args).await,
        Command::Deactivate(args) => versions::deactivate(context, args).await,
    }
}

fn folder_or_default(context: &Session, folder: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    Ok(match folder {
        Some(folder) => folder,
        None => context.settings.templates_dir()?,
    })
}

async fn sync(context: &Session, folder: Option<PathBuf>, activate: bool, by: &str) -> anyhow::Result<ExitCode> {
    let folder = folder_or_default(context, folder)?;
    let store = context.store_without_key().await?;
    let tries_default = context.settings.pipeline().map_or(3, |p| p.tries_default);
    let synced = reload::sync_folder(&store, &folder, tries_default, activate, by).await?;
    if context.is_json {
        Session::print_json(&json!({ "items": synced, "total": synced.len() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["TEMPLATE", "VERSION", "RESULT"]);
    for one in &synced {
        rows.add_row([one.key.as_str(), &one.version.to_string(), one.result]);
    }
    outln!("{rows}");
    if synced.iter().any(|one| one.result == "draft") {
        outln!("Drafts are not sent; `templates sync --activate` makes them active.");
    }
    Ok(ExitCode::SUCCESS)
}

fn lint_folder(context: &Session, folder: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let folder = folder_or_default(context, folder)?;
    let sources = read_folder(&folder)?;
    if sources.is_empty() {
        bail!("{} holds no templates (no <key>/manifest.toml)", folder.display());
    }
    let (mut faults, mut remarks) = (Vec::new(), Vec::new());
    for source in &sources {
        let found = inspect(source);
        let Inspection { faults: wrong, remarks: odd } = found;
        faults.extend(wrong.into_iter().map(|fault| (source.key.as_str(), fault.to_string())));
        remarks.extend(odd.into_iter().map(|remark| (source.key.as_str(), remark.to_string())));
    }
    if context.is_json {
        let items: Vec<Value> = faults.iter().map(|(key, words)| json!({ "template": key, "fault": words })).collect();
        let remarks: Vec<Value> =
            remarks.iter().map(|(key, words)| json!({ "template": key, "remark": words })).collect();
        let total = items.len();
        Session::print_json(
            &json!({ "templates": sources.len(), "items": items, "total": total, "remarks": remarks }),
        )?;
    } else {
        for (key, words) in &faults {
            outln!("{key}: {words}");
        }
        for (key, words) in &remarks {
            outln!("{key}: remark: {words}");
        }
        if faults.is_empty() {
            outln!("{} templates, no faults.", sources.len());
        }
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(
    context: &Session,
    key: &str,
    folder: Option<PathBuf>,
    variables: Option<PathBuf>,
    locale: Option<&str>,
    part: Option<PartChoice>,
) -> anyhow::Result<ExitCode> {
    let folder = folder_or_default(context, folder)?;
    let Some(source) = read_folder(&folder)?.into_iter().find(|source| source.key == key) else {
        bail!("there is no template {key} in {}", folder.display());
    };
    let variables: Map<String, Value> = match variables {
        Some(file) => serde_json::from_slice(&std::fs::read(&file).with_context(|| file.display().to_string())?)
            .with_context(|| file.display().to_string())?,
        None => source.sample.clone(),
    };
    let template = CompiledTemplate::compile(&source, 0, 1)
        .map_err(|faults| anyhow!(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let mail = context.settings.mail().ok();
    let system = System {
        request_date: Utc::now(),
        attachments: &[],
        support_email: mail.as_ref().and_then(|m| m.support_email.as_deref()),
        support_phone: mail.as_ref().and_then(|m| m.support_phone.as_deref()),
        timezone: mail.as_ref().map_or(chrono_tz::Africa::PortoNovo, |m| m.timezone),
        locale: locale.unwrap_or(&template.manifest().locale),
        unsubscribe_url: template.manifest().example_unsubscribe_url(),
    };
    let mail = template.render(&variables, &system)?;
    match part {
        Some(PartChoice::Subject) if context.is_json => Session::print_json(&json!({ "subject": mail.subject }))?,
        Some(PartChoice::Html) if context.is_json => Session::print_json(&json!({ "html": mail.html }))?,
        Some(PartChoice::Text) if context.is_json => Session::print_json(&json!({ "text": mail.text }))?,
        Some(PartChoice::Subject) => outln!("{}", mail.subject),
        Some(PartChoice::Html) => out!("{}", mail.html),
        Some(PartChoice::Text) => out!("{}", mail.text),
        None if context.is_json => {
            Session::print_json(&json!({ "subject": mail.subject, "html": mail.html, "text": mail.text }))?;
        }
        None => out!("Subject: {}\n\n{}", mail.subject, mail.text),
    }
    Ok(ExitCode::SUCCESS)
}
