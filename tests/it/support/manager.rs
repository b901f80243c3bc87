use std::{
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::wait::until;

/// Longest message of a service.
const MESSAGE_MAX: usize = 16 * 1024;

/// A service manager's ear: what a daemon tells its `NOTIFY_SOCKET`.
pub struct Manager {
    folder: TempDir,
    told: Arc<Mutex<Vec<Told>>>,
}

/// One assignment, and when it came.
#[derive(Debug, Clone)]
pub struct Told {
    pub words: String,
    pub at: Instant,
}

impl Manager {
    /// Listens from now on.
    pub fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::downgrade(&told);
        // A look now and then whether anybody still wants to know.
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
        std::thread::spawn(move || {
            let mut message = vec![0; MESSAGE_MAX];
            while let Some(into) = into.upgrade() {
                let Ok(length) = socket.recv(&mut message) else { continue };
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                let at = Instant::now();
                let lines = text.lines().map(|line| Told { words: line.to_owned(), at });
                into.lock().expect("no test panics here").extend(lines);
            }
        });
        Self { folder, told }
    }

    /// What `NOTIFY_SOCKET` is set to.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    /// What it was told so far.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().expect("no test panics here").clone()
    }

    /// How often it was told exactly this.
    pub fn count(&self, words: &str) -> usize {
        self.told().iter().filter(|told| told.words == words).count()
    }

    /// Waits until it was told this so often.
    pub async fn wait_for(&self, words: &str, count: usize) {
        until(&format!("{count} x {words}"), async || self.count(words) >= count).await;
    }

    /// Waits until it was told a status that holds these words.
    pub async fn wait_for_status(&self, words: &str) {
        until(&format!("a status: {words}"), async || {
            self.told().iter().any(|told| told.words.starts_with("STATUS=") && told.words.contains(words))
        })
        .await;
    }
}
