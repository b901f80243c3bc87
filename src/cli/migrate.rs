//! `postrider migrate`: the schema as this version needs it, and a daemon's role that cannot change it.

use std::process::ExitCode;

use anyhow::Context;

use super::Session;

const EXAMPLES: &str = "\
The role of DATABASE_URL here owns the tables; daemons get another one, which only reads and writes rows:

  psql -c \"create role postrider login password '...'\"
  DATABASE_URL=postgres://owner:...@host/postrider postrider migrate --grant-to postrider

Once is enough: what later migrations bring is granted with them.";

/// `postrider migrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Let this role read and write the rows of every table, now and after later migrations, and nothing else.
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let store = Session::connect(&context.keyless()?).await?;
    let missing = store.migrations_missing().await?;
    store.migrate().await.context("the schema could not be brought up to date; what was applied before stays")?;
    if let Some(role) = &args.grant_to {
        store.grant_to(role).await.context("--grant-to")?;
    }
    if context.is_json {
        Session::print_json(&serde_json::json!({ "applied": missing, "granted_to": args.grant_to }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if missing.is_empty() {
        outln!("The schema is up to date.");
    } else {
        outln!("Applied: {}.", missing.join(", "));
    }
    if let Some(role) = &args.grant_to {
        outln!("{role} may read and write rows, and change nothing else.");
    }
    Ok(ExitCode::SUCCESS)
}
