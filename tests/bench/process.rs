//! Child processes that do not outlive the benchmark, and what the kernel says they used.

use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};

/// Ticks in /proc a second: fixed in Linux's interface with programs, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at a process that is ending.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A child that is killed when this is dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts it; its standard input is empty.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error once it has ended: the caller still needs it.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }

    /// Waits for as long as it takes; blocks the thread.
    pub(crate) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Asks it to end (SIGTERM) and waits.
    pub(crate) async fn end(mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let asked = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().context("kill")?;
        if !asked.success() {
            bail!("{} could not be asked to end", self.name);
        }
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        bail!("{} did not end within {} s of SIGTERM", self.name, limit.as_secs())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// CPU time in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    parent: u32,
    /// Of the process itself, all its threads.
    pub(crate) own: f64,
    /// Of its children that have ended and were waited for.
    pub(crate) ended_children: f64,
}

/// What a process has used so far; `self` is a pid too.
pub(crate) fn cpu(pid: impl std::fmt::Display) -> anyhow::Result<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // The name stands in parentheses and may hold anything; what follows the last one is numbers, state first.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |index: usize| -> anyhow::Result<f64> {
        Ok(fields.get(index).ok_or_else(|| anyhow!("/proc/{pid}/stat is too short"))?.parse()?)
    };
    let ms = |index: usize| anyhow::Ok((number(index)? + number(index + 1)?) * 1000.0 / TICKS_PER_SECOND);
    Ok(Cpu { parent: fields.get(1).and_then(|p| p.parse().ok()).unwrap_or(0), own: ms(11)?, ended_children: ms(13)? })
}

/// CPU time in milliseconds of a process and of its children, living and ended: a server with a process a connection.
pub(crate) fn cpu_of_family(pid: u32) -> anyhow::Result<f64> {
    let head = cpu(pid)?;
    let mut sum = head.own + head.ended_children;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end while we look; its time is then counted with its parent's next time.
        if let Ok(used) = cpu(child)
            && used.parent == pid
        {
            sum += used.own;
        }
    }
    Ok(sum)
}

pub(crate) fn parent(pid: u32) -> Option<u32> {
    cpu(pid).ok().map(|used| used.parent)
}

/// Whether this process runs on this machine, and is that program: a pid that a server told may be another machine's.
pub(crate) fn is_program(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}

/// Resident memory, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) now: f64,
    /// The most since it started.
    pub(crate) peak: f64,
}

pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let mib = |name: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    };
    Ok(Memory { now: mib("VmRSS")?, peak: mib("VmHWM")? })
}

/// CPU time in milliseconds of the threads that a process has now, to the nanosecond: for what is too little for ticks.
pub(crate) fn exact_cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let mut ns = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        ns += text.split_whitespace().next().context("schedstat is empty")?.parse::<f64>()?;
    }
    Ok(ns / 1_000_000.0)
}

/// CPU time in milliseconds that the whole machine has spent working since it started.
pub(crate) fn machine_busy_ms() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat is odd")?;
    let ticks: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, then idle and waiting for disks, then interrupts; guests are in user already.
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|index| ticks.get(index)).sum::<f64>();
    Ok(busy * 1000.0 / TICKS_PER_SECOND)
}

/// How many CPUs there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How much ran on the machine during the last minute.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Memory that the machine has.
pub(crate) fn machine_memory_gib() -> Option<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = meminfo.lines().next()?.strip_prefix("MemTotal:")?.trim().trim_end_matches("kB").trim().parse::<f64>();
    Some(kib.ok()? / (1024.0 * 1024.0))
}
