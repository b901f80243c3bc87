//! How large batches are, and how long to rest after one: small enough that nobody waits for them, and with rests so long that the
//! database's time belongs to those who send.

use std::time::Duration;

/// Rows of the first batch.
const ROWS_FIRST: i64 = 50;
const ROWS_MIN: i64 = 5;
const ROWS_MAX: i64 = 1000;
/// A batch should take about so long: less grows, more than twice as much shrinks.
const BATCH: Duration = Duration::from_millis(50);
/// A batch that took very long says more about the moment than about itself.
const REST_MAX: Duration = Duration::from_secs(10);

/// Learns from each batch.
#[derive(Debug, Clone)]
pub struct Pace {
    rows: i64,
    /// In a hundred.
    share: u32,
}

impl Pace {
    /// Uses so much of the time of one connection, in a hundred (1 to 100).
    #[must_use]
    pub fn of_share(share: u8) -> Self {
        Self { rows: ROWS_FIRST, share: u32::from(share.clamp(1, 100)) }
    }

    /// Rows of the next batch.
    #[must_use]
    pub const fn rows(&self) -> i64 {
        self.rows
    }

    /// What comes now is another kind of row.
    pub const fn begin(&mut self) {
        self.rows = ROWS_FIRST;
    }

    /// A batch took so long: answers how long to rest.
    pub fn after(&mut self, took: Duration) -> Duration {
        if took < BATCH {
            self.rows = (self.rows * 2).min(ROWS_MAX);
        } else if took > BATCH * 2 {
            self.rows = (self.rows / 2).max(ROWS_MIN);
        }
        (took * (100 - self.share) / self.share).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_is_nine_times_the_rest() {
        let mut pace = Pace::of_share(10);
        assert_eq!(pace.after(Duration::from_millis(60)), Duration::from_millis(540));
        assert_eq!(pace.after(Duration::from_secs(30)), REST_MAX);
        assert_eq!(Pace::of_share(100).after(Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn batches_shrink_where_they_are_slow_and_never_to_nothing() {
        let mut pace = Pace::of_share(10);
        for _ in 0..20 {
            pace.after(Duration::from_secs(2));
        }
        assert_eq!(pace.rows(), ROWS_MIN);
        for _ in 0..20 {
            pace.after(Duration::from_millis(1));
        }
        assert_eq!(pace.rows(), ROWS_MAX);
        pace.after(BATCH);
        assert_eq!(pace.rows(), ROWS_MAX, "what is right stays");
        pace.begin();
        assert_eq!(pace.rows(), ROWS_FIRST);
    }
}
