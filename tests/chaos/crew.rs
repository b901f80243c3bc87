//! The daemons of a case: real processes, started, killed, and asked to stop.

use std::{
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use crate::{
    support::{
        daemon::Variables,
        process::{BINARY, DaemonProcess},
    },
    watch,
};

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest time that an orderly stop may take.
const STOP_MAX: Duration = Duration::from_secs(30);
/// Lines of a log that are shown.
const TAIL: usize = 12;

/// The daemons that run. Dropped, they are killed.
#[derive(Default)]
pub struct Crew {
    running: Vec<Option<DaemonProcess>>,
    /// What they are; nothing: the binary that was built with this program.
    pub program: Option<String>,
    /// Daemons that were killed, or died on command.
    pub kills: usize,
    /// What went wrong with one of them.
    pub faults: Vec<String>,
    /// What those said that were asked to stop.
    pub logs: Vec<String>,
}

impl Crew {
    /// Starts one, and says how it is called from now on.
    pub fn start(&mut self, variables: &Variables) -> usize {
        let daemon = DaemonProcess::start_binary(self.program.as_deref().unwrap_or(BINARY), variables, "127.0.0.1:0");
        watch::watch(&daemon);
        self.running.push(Some(daemon));
        self.running.len() - 1
    }

    /// Its process, while it runs.
    pub fn pid(&self, which: usize) -> Option<u32> {
        self.running[which].as_ref().map(DaemonProcess::pid)
    }

    /// SIGKILL.
    pub fn kill(&mut self, which: usize) {
        let Some(mut daemon) = self.running[which].take() else { return };
        if let Some(status) = daemon.ended() {
            self.note_end(status, &daemon.log());
            return;
        }
        daemon.kill();
        self.kills += 1;
    }

    /// Waits for one to die on command. False: it lives.
    pub async fn dies_within(&mut self, which: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            let daemon = self.running[which].as_mut().expect("it was not killed");
            if let Some(status) = daemon.ended() {
                let log = daemon.log();
                self.running[which] = None;
                if status.signal() == Some(9) {
                    self.kills += 1;
                } else {
                    self.note_end(status, &log);
                }
                return true;
            }
            tokio::time::sleep(PAUSE).await;
        }
        false
    }

    /// Asks all of them to stop, and waits.
    pub async fn stop(&mut self) {
        let mut stopping: Vec<DaemonProcess> = self.running.iter_mut().filter_map(Option::take).collect();
        for daemon in &mut stopping {
            if daemon.ended().is_none() {
                daemon.terminate();
            }
        }
        let until = Instant::now() + STOP_MAX;
        for daemon in &mut stopping {
            let status = loop {
                match daemon.ended() {
                    None if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                    status => break status,
                }
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => self.note_end(status, &daemon.log()),
                None => self.faults.push(format!("a daemon did not stop in time:\n{}", tail(&daemon.log()))),
            }
            self.logs.push(daemon.log());
        }
    }

    fn note_end(&mut self, status: ExitStatus, log: &str) {
        self.faults.push(format!("a daemon ended by itself ({status}):\n{}", tail(log)));
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| format!("      {line}\n")).collect()
}
