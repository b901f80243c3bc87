use std::{
    fs::File,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{
    daemon::Variables,
    wait::{PAUSE, until, until_some},
};

/// The real binary.
pub const BINARY: &str = env!("CARGO_BIN_EXE_postrider");
/// Longest run of a command.
const RUN_MAX: Duration = Duration::from_secs(30);

/// `postrider run` in a process of its own, which can be sent signals. Killed when dropped.
pub struct DaemonProcess {
    child: Child,
    log: TempDir,
}

impl DaemonProcess {
    /// Starts it with these settings and nothing else.
    pub fn start(variables: &Variables) -> Self {
        Self::start_at(variables, "127.0.0.1:0")
    }

    /// The same with its admin listener at this address.
    pub fn start_at(variables: &Variables, admin_addr: &str) -> Self {
        Self::start_binary(BINARY, variables, admin_addr)
    }

    /// The same with a binary of another version.
    pub fn start_binary(binary: &str, variables: &Variables, admin_addr: &str) -> Self {
        let log = TempDir::new().expect("a folder");
        let stderr = File::create(log.path().join("log")).expect("a file");
        let stdout = stderr.try_clone().expect("the same file");
        let child = Command::new(binary)
            .arg("run")
            .env_clear()
            .envs(variables)
            .env("ADMIN_ADDR", admin_addr)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        Self { child, log }
    }

    /// Where operators reach it, once it listens.
    pub async fn admin(&self) -> String {
        until_some("the admin listener", async || admin_in(&self.log())).await
    }

    /// The same for whoever does not wait with the daemon in hand; nothing if it is gone before it listens.
    pub fn admin_later(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let log = self.log.path().join("log");
        async move {
            loop {
                if let Some(url) = admin_in(&std::fs::read_to_string(&log).ok()?) {
                    return Some(url);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGABRT: it dies as from a fault of its own.
    pub fn abort(&self) {
        self.signal("-ABRT");
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// SIGSTOP: it hangs.
    pub fn suspend(&self) {
        self.signal("-STOP");
    }

    fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(told.success(), "the daemon is gone already:\n{}", self.log());
    }

    /// SIGKILL: it gets to do nothing any more.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is gone");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is ours")
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the daemon's end", async || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }

    /// Whether it has come to an end by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }

    /// What it has logged, and printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path().join("log")).unwrap_or_default()
    }
}

fn admin_in(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("admin listener"))?;
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("http://127.0.0.1:{port}"))
}

impl Drop for DaemonProcess {
    #[expect(clippy::print_stderr, reason = "whoever looks at a failed test wants to see it")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output as JSON, from a command that succeeded.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `postrider` with these settings and nothing else.
pub async fn postrider(variables: &Variables, arguments: &[&str]) -> Said {
    of_binary(BINARY, variables, arguments).await
}

/// The same at a terminal: what a person sees, both outputs as one, is in `out`. No argument may hold a blank.
pub async fn at_a_terminal(variables: &Variables, arguments: &[&str]) -> Said {
    // A terminal that nobody looks at has no width.
    let line = format!("stty cols 100 rows 40; TERM=xterm exec {BINARY} {}", arguments.join(" "));
    said("script", variables, &["--quiet", "--return", "--command", &line, "/dev/null"]).await
}

/// The same with a binary of another version.
pub async fn of_binary(binary: &str, variables: &Variables, arguments: &[&str]) -> Said {
    said(binary, variables, arguments).await
}

async fn said(program: &str, variables: &Variables, arguments: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(variables).stdin(Stdio::null());
    let run = spawn_blocking(move || command.output());
    let output = tokio::time::timeout(RUN_MAX, run).await.expect("it ends").expect("it was run").expect("it starts");
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
