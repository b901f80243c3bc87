use std::time::{Duration, Instant};

/// Longest wait of a test for something to become true.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(20);

/// Waits until it is so, looking again and again.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    until_some(what, async || is_so().await.then_some(())).await;
}

/// Waits until there is something, and returns it.
pub async fn until_some<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks again and again until nothing is at fault.
pub async fn until_sound(what: &str, mut faults: impl AsyncFnMut() -> Vec<String>) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let found = faults().await;
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}; still:\n{}", found.join("\n"));
        tokio::time::sleep(PAUSE).await;
    }
}
