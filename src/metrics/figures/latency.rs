//! How long mails took, in buckets: so that those of several daemons can be added, and their quantiles are those of all mails.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Four to a doubling, from one millisecond to an hour and more.
pub(super) const BUCKETS: usize = 88;

/// How many mails took how long: pairs of bucket and number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latency(Vec<(u8, u32)>);

impl Latency {
    pub(super) fn add_counts(&mut self, counts: &[u32; BUCKETS]) {
        let counts = (0_u8..).zip(counts.iter().copied()).filter(|(_, count)| *count > 0);
        self.add(&Self(counts.collect()));
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            match self.0.binary_search_by_key(bucket, |(known, _)| *known) {
                Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(*count),
                Err(at) => self.0.insert(at, (*bucket, *count)),
            }
        }
    }

    /// How many mails there were.
    #[must_use]
    pub fn mails(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// What this part of them took at most, in milliseconds, to within a fifth; nothing: there were none.
    #[must_use]
    pub fn quantile_ms(&self, part: f64) -> Option<f64> {
        let rank = (self.mails() as f64 * part).ceil().max(1.0);
        let mut below = 0.0;
        for (bucket, count) in &self.0 {
            let count = f64::from(*count);
            if below + count >= rank {
                let within = (rank - below) / count;
                return Some(2_f64.powf((f64::from(*bucket) + within) / 4.0));
            }
            below += count;
        }
        None
    }
}

/// Where a latency is counted.
pub(super) fn bucket(latency: Duration) -> usize {
    let ms = latency.as_secs_f64() * 1000.0;
    if ms <= 1.0 {
        return 0;
    }
    // Within range: it is positive, and the last bucket takes everything above.
    ((ms.log2() * 4.0) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_within_a_fifth() {
        let mut counts = [0; BUCKETS];
        for ms in 1..=1000 {
            counts[bucket(Duration::from_millis(ms))] += 1;
        }
        let mut latency = Latency::default();
        latency.add_counts(&counts);
        assert_eq!(latency.mails(), 1000);
        for (part, right) in [(0.5, 500.0), (0.99, 990.0)] {
            let said = latency.quantile_ms(part).expect("there are some");
            assert!((said / right - 1.0).abs() < 0.2, "{part}: {said}");
        }
        assert_eq!(Latency::default().quantile_ms(0.5), None);
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_secs(1_000_000)), BUCKETS - 1);
    }
}
