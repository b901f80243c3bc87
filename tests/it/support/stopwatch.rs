use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// Between two looks at the clock.
const STEP: Duration = Duration::from_millis(50);

/// Measures what took so long, leaving out how long this process stood still: on a busy machine that may be seconds.
pub struct Stopwatch {
    began: Instant,
    seen: Arc<Mutex<Seen>>,
    /// Its end is the thread's.
    _running: mpsc::Sender<()>,
}

struct Seen {
    looked_at: Instant,
    stalled: Duration,
}

impl Seen {
    /// For how long nobody has looked who should have.
    fn overdue(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.looked_at).saturating_sub(STEP)
    }
}

impl Stopwatch {
    /// Begins to measure.
    pub fn start() -> Self {
        let began = Instant::now();
        let seen = Arc::new(Mutex::new(Seen { looked_at: began, stalled: Duration::ZERO }));
        let (running, ended) = mpsc::channel::<()>();
        let looking = Arc::clone(&seen);
        // A thread of its own: the runtime's may have work that takes long, and that counts.
        thread::spawn(move || {
            while ended.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                let mut seen = lock(&looking);
                let now = Instant::now();
                let overdue = seen.overdue(now);
                seen.stalled += overdue;
                seen.looked_at = now;
            }
        });
        Self { began, seen, _running: running }
    }

    /// Since the start, without the stalls.
    pub fn elapsed(&self) -> Duration {
        let seen = lock(&self.seen);
        let now = Instant::now();
        // After a stall this may come before the thread's own look.
        (now - self.began).saturating_sub(seen.stalled + seen.overdue(now))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
