//! The command line: what people type, and what they see.
//!
//! Exit codes: 0 done, 1 something failed, 2 the command line is wrong, 78 the settings are wrong (`EX_CONFIG`).
#![allow(clippy::print_stderr, reason = "a command line prints")]

/// Prints to standard output. A reader that has seen enough (`| head`) ends the command, and that is no fault.
macro_rules! out {
    ($($arg:tt)*) => { crate::cli::write_out(&format!($($arg)*)) };
}

/// The same with a line end.
macro_rules! outln {
    ($($arg:tt)*) => { crate::cli::write_out(&format!("{}\n", format_args!($($arg)*))) };
}

/// `postrider publish`.
mod publish;

/// `postrider templates`.
mod templates;

/// `postrider messages`.
mod audit;

/// `postrider dead list` and `dead show`.
mod dead;

/// `postrider dead replay`.
mod replay;

/// `postrider dead runs` and `dead run`.
mod runs;

/// `postrider feedback`.
mod feedback;

/// `postrider suppressions`.
mod suppressions;

/// `postrider events`.
mod events;

/// `postrider lanes`.
mod lanes;

/// `postrider retention`.
mod retention;

/// `postrider metrics`.
mod metrics;

/// How far a long command is.
mod progress;

/// `postrider migrate`.
mod migrate;

/// `postrider check`.
mod check;

/// `postrider health`.
mod health;

use std::{fmt::Display, io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::{
    app,
    config::{AttachmentConfig, Environment, Faults, LogConfig, LogFormat, Settings, StoreConfig},
    core_dumps,
    email::EmailAddress,
    service_manager,
    store::Store,
    telemetry,
};

/// The settings are wrong (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

/// Carries e-mail requests from RabbitMQ to SMTP.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// TOML file for what is structured (lanes, relays, ladders); the environment wins over it.
    #[arg(long, global = true, value_name = "FILE", env = "POSTRIDER_CONFIG", help_heading = "Global options")]
    config: Option<PathBuf>,

    /// How to print results.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Table, help_heading = "Global options")]
    output: OutputFormat,

    /// The same as --output json.
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  postrider check                         is everything in order?
  postrider migrate && postrider run      update the schema, then carry mail
  postrider publish --template support_ticket_created \\
      --to ada@example.bj --sample
  postrider messages --to ada@example.bj  did she get it?
  postrider events tail                   what becomes of mails, as it happens
  postrider dead list                     what failed for good, and why
  postrider dead replay ID                its cause is mended: send it again
  postrider suppressions show ADDRESS     does she get any mail, and why not?
  postrider lanes                         how much waits, and how fast does it go?

Settings come from the environment (see .env.example); NAME_FILE reads NAME
from a file. Exit codes: 0 done, 1 failed, 2 wrong command line, 78 wrong settings.";

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry mail until SIGTERM or Ctrl-C.
    Run,
    /// Publish requests, each confirmed by the broker.
    Publish(publish::Args),
    /// Look at, check and synchronise templates.
    #[command(subcommand)]
    Templates(templates::Command),
    /// Show mails and what became of them.
    Messages(audit::MessagesArgs),
    /// Show what failed for good, and send it on its way again.
    #[command(subcommand)]
    Dead(dead::Command),
    /// Show what the provider did not tell, and what it told of nobody.
    #[command(subcommand)]
    Feedback(feedback::Command),
    /// Show who gets no mail, and put addresses on that list or take them off it.
    #[command(subcommand)]
    Suppressions(suppressions::Command),
    /// Hear what becomes of mails.
    #[command(subcommand)]
    Events(events::Command),
    /// Show how the lanes fare, pause one, or let it go on.
    Lanes(lanes::Args),
    /// Show what is due to be forgotten or deleted, and do it.
    #[command(subcommand)]
    Retention(retention::Command),
    /// Describe every metric that a daemon serves and pushes.
    Metrics(metrics::Args),
    /// Bring the database's schema up to date.
    Migrate(migrate::Args),
    /// Check settings, broker, database and relays, and say what is wrong.
    Check,
    /// Ask the running daemon whether it is alive, or ready; for probes of containers.
    Health(health::Args),
}

fn write_out(text: &str) {
    if std::io::stdout().write_all(text.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

/// The error and its causes, but for causes that the words before them have told already.
fn words_of(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

/// What every command works with.
struct Session {
    settings: Settings,
    is_json: bool,
}

/// Runs a command line; everything it has to say is printed.
pub async fn main(cli: Cli) -> ExitCode {
    let environment = Environment::of_process();
    if !environment.allows_core_dumps()
        && let Err(error) = core_dumps::forbid()
    {
        eprintln!("postrider: core dumps cannot be forbidden ({error})");
    }
    let settings = Settings::read(&environment, cli.config.as_deref());
    drop(environment);
    let context = Session { settings, is_json: cli.json || cli.output == OutputFormat::Json };
    let done = match cli.command {
        Command::Run => Box::pin(run(context)).await,
        Command::Publish(args) => publish::run(&context, args).await,
        Command::Templates(command) => templates::run(&context, command).await,
        Command::Messages(args) => audit::messages(&context, args).await,
        Command::Dead(command) => dead::run(&context, command).await,
        Command::Feedback(command) => feedback::run(&context, command).await,
        Command::Suppressions(command) => suppressions::run(&context, command).await,
        Command::Events(command) => events::run(&context, command).await,
        Command::Lanes(args) => lanes::run(&context, args).await,
        Command::Retention(command) => retention::run(&context, command).await,
        Command::Metrics(args) => metrics::run(&context, &args),
        Command::Migrate(args) => migrate::run(&context, args).await,
        Command::Check => check::run(&context).await,
        Command::Health(args) => health::run(&context, args).await,
    };
    done.unwrap_or_else(|error| {
        if let Some(faults) = error.downcast_ref::<Faults>() {
            eprintln!("{faults}");
            return ExitCode::from(EXIT_CONFIG);
        }
        eprintln!("postrider: {}", words_of(&error));
        ExitCode::FAILURE
    })
}

impl Session {
    /// Logs as the settings say; a command that prints results logs only what went wrong, for people.
    fn log_quietly(&self) {
        // lapin logs as an error what `check` and `publish` report in words.
        telemetry::start(&LogConfig { format: LogFormat::Text, filter: "error,lapin=off".to_owned() });
    }

    async fn store(&self) -> anyhow::Result<Arc<Store>> {
        Self::open(self.settings.store()?).await
    }

    /// A store for commands that never hash an address, so that `EMAIL_HASH_KEY` is not asked for.
    async fn store_without_key(&self) -> anyhow::Result<Arc<Store>> {
        Self::open(self.keyless()?).await
    }

    /// A store to search for a person in: with the key of the hashes if there is one, and that person's hash.
    async fn store_to_search(&self, to: Option<&str>) -> anyhow::Result<(Arc<Store>, Option<[u8; 32]>)> {
        let Some(to) = to else { return Ok((self.store_without_key().await?, None)) };
        self.store_to_search_for(to, "--to").await.map(|(store, hash)| (store, Some(hash)))
    }

    /// The same for a person who is always named; `argument` says where on the command line.
    async fn store_to_search_for(
        &self,
        person: &str,
        argument: &'static str,
    ) -> anyhow::Result<(Arc<Store>, [u8; 32])> {
        let address = EmailAddress::parse(person).context(argument)?;
        let store = self.store().await?;
        // With another key nothing would be found, and "no" would be the wrong answer.
        store.verify_hash_key().await?;
        let hash = store.address_hash(&address.key());
        Ok((store, hash))
    }

    fn keyless(&self) -> anyhow::Result<StoreConfig> {
        Ok(StoreConfig {
            url: self.settings.database_url()?,
            connections_max: 2,
            fast_connections_max: 1,
            hash_key: SecretString::from(String::new()),
            events: self.settings.events()?,
            // None of these commands reads or writes a file.
            attachments: AttachmentConfig::default(),
        })
    }

    async fn open(config: StoreConfig) -> anyhow::Result<Arc<Store>> {
        let store = Self::connect(&config).await?;
        let missing = store.migrations_missing().await?;
        if !missing.is_empty() {
            bail!("the database lacks {}: run `postrider migrate`", missing.join(", "));
        }
        Ok(store)
    }

    async fn connect(config: &StoreConfig) -> anyhow::Result<Arc<Store>> {
        let store = Store::new(config, std::time::Duration::from_secs(30))?;
        store.connect_once().await.context("DATABASE_URL")?;
        Ok(store)
    }

    fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
        outln!("{}", serde_json::to_string_pretty(value)?);
        Ok(())
    }
}

async fn run(context: Session) -> anyhow::Result<ExitCode> {
    let config = context.settings.config()?;
    // As they were written, secrets are not needed any more.
    drop(context);
    telemetry::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!(warning);
    }
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = tokio::signal::ctrl_c() => tracing::info!("interrupted"),
        }
        service_manager::stopping();
        signalled.cancel();
    });
    Ok(Box::pin(app::run(config, stop)).await?)
}

/// A table for people: left-aligned, no frame, one line a row.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    table
}

/// What stands in a table where there is nothing.
fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Control characters would do things to a terminal; a table wants one line.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
    if text.chars().count() > 160 {
        line.push('…');
    }
    line
}
