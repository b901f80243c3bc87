//! The suppression list out of a file, and into one.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::ByArgs;
use crate::{
    cli::{Session, progress},
    store::{
        Store,
        suppressions::{BATCH, NewSuppression, Written},
    },
    suppression_file::{self, Contents, Reading},
};

/// Entries from which a progress bar is worth looking at.
const PROGRESS_FROM: usize = 20_000;
/// Faults that are shown to people.
const FAULTS_SHOWN: usize = 50;

#[derive(Debug, Args)]
#[command(after_help = "\
The first line names the columns: address,reason,category,source,note,expires_at,created_at.
Only address is required; the reason is operator where none is given. All faults are
shown with their lines, and nothing is written if there is one. What is on the list
already is renewed or prolonged, never shortened: importing twice changes nothing.")]
pub(in crate::cli) struct ImportArgs {
    /// The file; - reads standard input.
    file: PathBuf,
    /// Only look for faults.
    #[arg(long)]
    dry_run: bool,
    /// Leave out lines with faults, and import the others.
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    by: ByArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is exported can be imported again as it is. Cells that a spreadsheet would run as
formulas have an apostrophe before them, which importing takes off again.")]
pub(in crate::cli) struct ExportArgs {
    /// The file; - writes to standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

pub(super) async fn import(context: &Session, args: ImportArgs) -> anyhow::Result<ExitCode> {
    let store = context.store().await?;
    store.verify_hash_key().await?;
    let bytes = read_all(&args.file).with_context(|| args.file.display().to_string())?;
    let source = format!("import:{}", args.by.name);
    let contents = {
        let hash = |key: &str| store.address_hash(key);
        suppression_file::read(&bytes, &Reading { hash: &hash, source: &source })
    };
    let is_refused = !contents.faults.is_empty() && !args.skip_bad;
    let written = if is_refused || args.dry_run {
        None
    } else {
        Some(write(&store, &contents.entries, &args.by.operator()).await?)
    };
    if context.is_json {
        let faults: Vec<_> = contents
            .faults
            .iter()
            .map(|fault| json!({ "line": fault.line, "field": fault.field, "problem": fault.problem }))
            .collect();
        let counts = written.unwrap_or_default();
        Session::print_json(&json!({
            "entries": contents.entries.len(), "faults": faults, "imported": written.is_some(),
            "added": counts.added, "changed": counts.changed, "unchanged": counts.unchanged,
        }))?;
    } else {
        tell(&contents, written);
    }
    Ok(if is_refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(contents: &Contents, written: Option<Written>) {
    for fault in contents.faults.iter().take(FAULTS_SHOWN) {
        outln!("{fault}");
    }
    let (entries, faults) = (contents.entries.len(), contents.faults.len());
    if faults > FAULTS_SHOWN {
        outln!("... and {} more; --json shows all.", faults - FAULTS_SHOWN);
    }
    match written {
        None if faults > 0 => outln!("Nothing was imported: {entries} entries are sound, {faults} are not."),
        None => outln!("Nothing was imported: {entries} entries, all sound."),
        Some(w) => {
            let skipped = if faults > 0 { format!(", {faults} skipped") } else { String::new() };
            outln!("Imported: {} added, {} changed, {} as they were{skipped}.", w.added, w.changed, w.unchanged);
        }
    }
}

async fn write(store: &Store, entries: &[NewSuppression], by: &str) -> anyhow::Result<Written> {
    let bar = progress::bar(entries.len() as u64, entries.len() >= PROGRESS_FROM);
    let written = store
        .suppress_as(entries, Some(by), |done| bar.set_position(done as u64))
        .await
        .context("broke off in the middle; import the same file again");
    bar.finish_and_clear();
    written
}

fn read_all(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) async fn export(context: &Session, args: ExportArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let is_file = args.out != Path::new("-");
    let written = if is_file {
        let name = || args.out.display().to_string();
        let mut file = private_file(&args.out).with_context(name)?;
        let written = write_all(&store, |lines| file.write_all(lines)).await.with_context(name)?;
        file.sync_all().with_context(name)?;
        written
    } else {
        write_all(&store, |lines| {
            std::io::stdout().write_all(lines).or_else(|error| match error.kind() {
                // A reader that has seen enough is no fault.
                std::io::ErrorKind::BrokenPipe => std::process::exit(0),
                _ => Err(error),
            })
        })
        .await?
    };
    if is_file && context.is_json {
        Session::print_json(&json!({ "exported": written }))?;
    } else if is_file {
        outln!("Exported: {written} entries.");
    }
    Ok(ExitCode::SUCCESS)
}

/// A list of persons is for nobody else on the machine.
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

async fn write_all(store: &Store, mut write: impl FnMut(&[u8]) -> std::io::Result<()>) -> anyhow::Result<usize> {
    let (mut written, mut last) = (0, None);
    loop {
        let page = store.suppressions_after(last.as_ref(), i64::try_from(BATCH)?).await?;
        write(&suppression_file::write(&page, last.is_none())?)?;
        written += page.len();
        if page.len() < BATCH {
            return Ok(written);
        }
        last = page.into_iter().next_back();
    }
}
