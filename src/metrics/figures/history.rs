//! Five minutes of a lane, in steps of the wall clock: so that those of several daemons can be added.

use std::{array, collections::VecDeque};

use serde::{Deserialize, Serialize};

/// A step of the history.
pub const STEP_SECONDS: i64 = 5;
/// Steps of the history: five minutes.
pub const STEPS: usize = 60;

/// Five minutes in steps of five seconds, as far as anything happened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Number of the last whole step: seconds since 1970 divided by [`STEP_SECONDS`].
    pub last_step: i64,
    /// Mails that the relay took, oldest first; steps before the first are zero.
    pub(super) sent: VecDeque<u32>,
    /// Deferrals and dead letters, likewise.
    pub(super) troubled: VecDeque<u32>,
}

impl History {
    pub(super) fn push(&mut self, step: i64, sent: u32, troubled: u32) {
        self.advance(step - 1);
        self.last_step = step;
        append(&mut self.sent, sent);
        append(&mut self.troubled, troubled);
    }

    /// Nothing happened up to this step.
    pub(super) fn advance(&mut self, step: i64) {
        let idle = usize::try_from(step - self.last_step).unwrap_or(0).min(STEPS);
        for _ in 0..idle {
            append(&mut self.sent, 0);
            append(&mut self.troubled, 0);
        }
        self.last_step = self.last_step.max(step);
    }

    /// Adds another daemon's, whose last step may be another one.
    pub(super) fn add(&mut self, other: &Self) {
        if self.last_step == 0 {
            self.last_step = other.last_step;
        }
        let last_step = self.last_step.max(other.last_step);
        self.sent = sum(&self.sent_until(last_step), &other.sent_until(last_step));
        self.troubled = sum(&self.troubled_until(last_step), &other.troubled_until(last_step));
        self.last_step = last_step;
    }

    /// Mails that the relay took in each of the steps that end with this one.
    #[must_use]
    pub fn sent_until(&self, step: i64) -> [u32; STEPS] {
        until(&self.sent, step - self.last_step)
    }

    /// Deferrals and dead letters in each of the steps that end with this one.
    #[must_use]
    pub fn troubled_until(&self, step: i64) -> [u32; STEPS] {
        until(&self.troubled, step - self.last_step)
    }
}

/// What comes before the first event is left out: a row of zeros would have to be stored.
fn append(steps: &mut VecDeque<u32>, count: u32) {
    if count > 0 || !steps.is_empty() {
        steps.push_back(count);
    }
    if steps.len() > STEPS {
        steps.pop_front();
    }
    while steps.front() == Some(&0) {
        steps.pop_front();
    }
}

/// The steps that end `later` steps after the last one.
fn until(steps: &VecDeque<u32>, later: i64) -> [u32; STEPS] {
    let later = usize::try_from(later).unwrap_or(0);
    array::from_fn(|index| {
        // Counted from the end: the last step of the answer is 0.
        let back = STEPS - 1 - index;
        back.checked_sub(later).and_then(|back| steps.iter().rev().nth(back)).copied().unwrap_or(0)
    })
}

fn sum(a: &[u32; STEPS], b: &[u32; STEPS]) -> VecDeque<u32> {
    let sums = a.iter().zip(b).map(|(a, b)| a.saturating_add(*b));
    sums.skip_while(|count| *count == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(history: &History, step: i64) -> Vec<u32> {
        let steps = history.sent_until(step);
        steps.iter().copied().skip_while(|count| *count == 0).collect()
    }

    #[test]
    fn several_daemons_add_up_step_by_step() {
        let mut one = History::default();
        one.push(100, 1, 0);
        one.push(101, 2, 1);
        let mut other = History::default();
        other.push(99, 10, 0);
        other.push(100, 20, 0);
        one.add(&other);
        assert_eq!((one.last_step, sent(&one, 101)), (101, vec![10, 21, 2]));
        let mut none = History::default();
        none.add(&one);
        assert_eq!(none, one);
    }
}
