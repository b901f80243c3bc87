use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{process::Said, service, wait::until};

/// Longest run of a program.
const RUN_MAX: Duration = Duration::from_secs(30);

/// Whose program.
#[derive(Debug, Clone, Copy)]
pub enum Language {
    Python,
    Node,
    Rust,
}

impl Language {
    /// Its program, ready for arguments.
    fn program(self) -> Command {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/producers");
        match self {
            Self::Python => {
                // The distribution's: `./deploy/dev test` installs pika and protobuf for that one.
                let mut command = Command::new("/usr/bin/python3");
                command.arg("-B").arg(folder.join("python/producer.py"));
                command
            }
            Self::Node => {
                let mut command = Command::new(service("TEST_NODE"));
                command.arg(folder.join("node/producer.js")).env("NODE_PATH", service("TEST_NODE_MODULES"));
                command
            }
            Self::Rust => Command::new(example("producer")),
        }
    }

    /// Runs it to its end.
    pub async fn run(self, amqp_url: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Said {
        let mut command = self.program();
        command.args(arguments).env("AMQP_URL", amqp_url).envs(variables.iter().copied()).stdin(Stdio::null());
        let run = spawn_blocking(move || command.output());
        let output =
            tokio::time::timeout(RUN_MAX, run).await.expect("it ends").expect("it was run").expect("it starts");
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Lets it print so many events.
    pub fn listen(self, amqp_url: &str, count: usize) -> Listener {
        let folder = TempDir::new().expect("a folder");
        let file = |name: &str| File::create(folder.path().join(name)).expect("a file");
        let child = self
            .program()
            .args(["events", &count.to_string()])
            .env("AMQP_URL", amqp_url)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .expect("it starts");
        Listener { child, folder }
    }
}

/// Where cargo puts an example beside this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --examples, or ./deploy/dev test", path.display());
    path
}

/// A program that prints events. Killed when dropped.
pub struct Listener {
    child: Child,
    folder: TempDir,
}

impl Listener {
    /// What it printed, once it has printed all it was asked for.
    pub async fn events(mut self) -> Vec<serde_json::Value> {
        until("the events are printed", async || self.child.try_wait().expect("it is ours").is_some()).await;
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).expect("text");
        let (status, out, err) = (self.child.wait().expect("it has ended"), read("out"), read("err"));
        assert!(status.success(), "{err}");
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
