//! Postfix's load generator and its sink: the yardstick, and where every mail of a run ends.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::{
    process::{self, Process},
    run::{self, Run},
};

/// Where distributions put these programs, besides PATH.
const FOLDERS: [&str; 5] =
    ["/usr/sbin", "/usr/lib/postfix/sbin", "/usr/lib/postfix", "/usr/libexec/postfix", "/usr/local/sbin"];
/// How long a sink may take to listen, and to note the last mail.
const SINK_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a sink.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// More than one line of the sink's counter.
const COUNTER_BYTES: u64 = 256;
/// The payload of the mail that shows how much smtp-source adds to it.
const PROBE_PAYLOAD: u64 = 1_000;
const SENDER: &str = "noreply@bench.example";
const RECIPIENT: &str = "reader@bench.example";

/// A running `smtp-sink`.
pub(crate) struct Sink {
    process: Process,
    port: u16,
    counter: PathBuf,
}

impl Sink {
    /// A sink that counts what it gets and throws it away.
    pub(crate) async fn counting(scratch: &Path) -> anyhow::Result<Self> {
        // It writes its counter on a line of its own for each mail; a file needs no reader that would take CPU.
        Self::start(scratch, &["-c"]).await
    }

    /// One that counts and hides that it understands PIPELINING.
    pub(crate) async fn without_pipelining(scratch: &Path) -> anyhow::Result<Self> {
        Self::start(scratch, &["-c", "-p"]).await
    }

    /// A sink that keeps each mail as a file in this folder.
    async fn keeping(scratch: &Path, folder: &Path) -> anyhow::Result<Self> {
        // The sink gives up root's rights before it writes.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        fs::set_permissions(scratch, fs::Permissions::from_mode(0o755))?;
        let template = format!("{}/", folder.display());
        Self::start(scratch, &["-c", "-d", &template]).await
    }

    async fn start(scratch: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let port = free_port()?;
        let counter = scratch.join(format!("sink-{port}.counter"));
        let mut command = Command::new(program("smtp-sink")?);
        if fs::metadata("/proc/self")?.uid() == 0 {
            // Run by root it insists on a user to become.
            command.args(["-u", "nobody"]);
        }
        command.args(options).arg(format!("127.0.0.1:{port}")).arg("256");
        command.stdout(File::create(&counter)?).stderr(Stdio::inherit());
        let mut sink = Self { process: Process::start("smtp-sink", &mut command)?, port, counter };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sink.process.must_run()?;
            ensure!(begun.elapsed() < SINK_LIMIT, "smtp-sink does not listen");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(sink)
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn cpu_ms(&self) -> anyhow::Result<f64> {
        Ok(process::cpu(self.process.pid())?.own)
    }

    /// Mails whose final dot has arrived.
    pub(crate) fn received(&mut self) -> anyhow::Result<u64> {
        self.process.must_run()?;
        let mut file = File::open(&self.counter)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(COUNTER_BYTES)))?;
        let mut tail = String::new();
        file.read_to_string(&mut tail)?;
        // "sess=3 quit=1 mesg=2" and a carriage return, again and again; what follows the last one is being written.
        let Some((whole, _)) = tail.rsplit_once('\r') else { return Ok(0) };
        let last = whole.rsplit('\r').next().unwrap_or_default();
        let count = last.rsplit_once("mesg=").with_context(|| format!("smtp-sink's counter is odd: {last}"))?.1;
        Ok(count.trim().parse()?)
    }

    /// Waits until this many mails have arrived, for a short while: the sender says that it is done.
    async fn expect(&mut self, mails: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let received = self.received()?;
            if received == mails {
                return Ok(());
            }
            ensure!(begun.elapsed() < SINK_LIMIT, "the sink has {received} mails of {mails}");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}

/// A sink that keeps one mail, to be weighed.
pub(crate) struct Scale {
    /// Where to send the mail.
    pub(crate) sink: Sink,
    /// Where it is then.
    pub(crate) folder: Kept,
}

/// The folder of a [`Scale`].
pub(crate) struct Kept(TempDir);

impl Scale {
    pub(crate) async fn start(scratch: &Path) -> anyhow::Result<Self> {
        let folder = TempDir::new_in(scratch)?;
        Ok(Self { sink: Sink::keeping(scratch, folder.path()).await?, folder: Kept(folder) })
    }
}

impl Kept {
    /// Bytes of the one mail that arrived.
    pub(crate) fn weigh(&self) -> anyhow::Result<u64> {
        let kept = fs::read_dir(self.0.path())?.next().context("smtp-sink kept nothing")??;
        Ok(size_on_the_wire(&fs::read_to_string(kept.path())?))
    }
}

/// The dump begins with headers of the sink's own (X-..., Received and its folded lines), and ends lines with LF.
fn size_on_the_wire(dump: &str) -> u64 {
    let mut is_ours = false;
    dump.split_inclusive('\n')
        .skip_while(|line| {
            let is_added = line.starts_with("X-Client-")
                || ["X-Helo-Args", "X-Mail-Args", "X-Rcpt-Args", "Received:"].iter().any(|name| line.starts_with(name))
                || line.starts_with('\t');
            is_ours |= !is_added;
            !is_ours
        })
        .map(|line| line.len() as u64 + 1)
        .sum()
}

/// The payload to ask of smtp-source so that its mails have this size with their headers.
pub(crate) async fn payload_for(size: u64, scratch: &Path) -> anyhow::Result<u64> {
    let mut scale = Scale::start(scratch).await?;
    let mut command = source_command(1, 1, PROBE_PAYLOAD, scale.sink.port())?;
    ensure!(Process::start("smtp-source", &mut command)?.wait()?.success(), "smtp-source failed");
    scale.sink.expect(1).await?;
    let headers = scale.folder.weigh()?.saturating_sub(PROBE_PAYLOAD);
    Ok(size.saturating_sub(headers).max(1))
}

/// One run of the yardstick.
pub(crate) async fn source(mails: u64, connections: u16, payload: u64, scratch: &Path) -> anyhow::Result<Run> {
    let mut sink = Sink::counting(scratch).await?;
    let mut command = source_command(mails, connections, payload, sink.port())?;
    let busy_before = process::machine_busy_ms()?;
    let (wall, cpu_ms) = tokio::task::spawn_blocking(move || {
        let before = process::cpu("self")?.ended_children;
        let begun = Instant::now();
        let status = Process::start("smtp-source", &mut command)?.wait()?;
        let wall = begun.elapsed();
        ensure!(status.success(), "smtp-source: {status}");
        anyhow::Ok((wall, process::cpu("self")?.ended_children - before))
    })
    .await??;
    let busy = process::machine_busy_ms()? - busy_before;
    sink.expect(mails).await?;
    let sink_ms = sink.cpu_ms()?;
    let per_thousand = |ms: f64| ms * 1000.0 / mails as f64;
    Ok(Run {
        mails,
        mails_per_second: mails as f64 / wall.as_secs_f64(),
        wall_seconds: wall.as_secs_f64(),
        cpu_ms_per_thousand: per_thousand(cpu_ms),
        sink_cpu_ms_per_thousand: per_thousand(sink_ms),
        elsewhere_share: run::share(busy - cpu_ms - sink_ms, wall),
        ..Run::default()
    })
}

fn source_command(mails: u64, connections: u16, payload: u64, port: u16) -> anyhow::Result<Command> {
    let mut command = Command::new(program("smtp-source")?);
    command
        .arg("-d")
        .args(["-s", &connections.to_string(), "-m", &mails.to_string(), "-l", &payload.to_string()])
        .args(["-f", SENDER, "-t", RECIPIENT])
        .arg(format!("127.0.0.1:{port}"));
    Ok(command)
}

/// Postfix's version, as far as it can be told.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(program("postconf").ok()?).args(["-dh", "mail_version"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|version| !version.is_empty())
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(FOLDERS.into_iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file());
    match found {
        Some(found) => Ok(found),
        None => bail!("{name} is missing: it comes with Postfix (Debian: postfix)"),
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
