//! The daemon as a child process, with its log.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};

use super::process::Process;

/// The daemon, built with the same profile as this benchmark.
const POSTRIDER: &str = env!("CARGO_BIN_EXE_postrider");
/// The daemon's own grace period is as long.
const END_LIMIT: Duration = Duration::from_secs(70);
/// Lines of the daemon's log that are shown when it fails.
const LOG_LINES: usize = 15;

/// A running daemon, killed when this is dropped.
pub(crate) struct Daemon {
    process: Process,
    log: PathBuf,
}

impl Daemon {
    /// Starts one; its log is overwritten by the next of the same number.
    pub(crate) fn start(settings: &[(String, String)], scratch: &Path, number: u16) -> anyhow::Result<Self> {
        let log = scratch.join(format!("daemon-{number}.log"));
        Ok(Self { process: Process::start("postrider", &mut command("run", settings, &log)?)?, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// An error once it has ended.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.process.must_run().with_context(|| end_of(&self.log))
    }

    /// Asks it to end; anything but a clean end is an error.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let status = self.process.end(END_LIMIT).await.with_context(|| end_of(&self.log))?;
        ensure!(status.success(), "postrider: {status}\n{}", end_of(&self.log));
        Ok(())
    }

    /// What its log says last.
    pub(crate) fn last_words(&self) -> String {
        end_of(&self.log)
    }
}

/// Brings the schema of the settings' database up to date.
pub(crate) fn migrate(settings: &[(String, String)], scratch: &Path) -> anyhow::Result<()> {
    let log = scratch.join("migrate.log");
    let status = command("migrate", settings, &log)?.status().context("postrider migrate")?;
    ensure!(status.success(), "postrider migrate: {status}\n{}", end_of(&log));
    Ok(())
}

/// The daemon's command line, with these settings and nothing of this process's environment, logging into this file.
fn command(what: &str, settings: &[(String, String)], log: &Path) -> anyhow::Result<Command> {
    let file = File::create(log)?;
    let mut command = Command::new(POSTRIDER);
    command.arg(what).env_clear().envs(settings.iter().cloned()).stdout(file.try_clone()?).stderr(file);
    Ok(command)
}

/// The log has no addresses in clear, so that its end can be shown.
fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
