//! How long the steps of a dialogue took.
//!
//! Invariant: a step lasts from when its command was written, or the step before it was over, whichever is later, until its
//! reply was read: steps never overlap, and together they are the dialogue.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use crate::email::Phase;

/// The steps of one mail's transaction, or of opening one connection, in order, as far as they were finished.
#[derive(Debug, Clone)]
pub struct Steps {
    began: Instant,
    ends: Vec<(Phase, Instant)>,
}

impl Steps {
    /// MAIL, RCPT, DATA, content and final dot; connect, greeting, EHLO, STARTTLS, EHLO and AUTH.
    const USUAL: usize = 6;

    /// They begin now.
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), ends: Vec::with_capacity(Self::USUAL) }
    }

    /// Nothing begins.
    pub(super) fn none() -> Self {
        Self { began: Instant::now(), ends: Vec::new() }
    }

    /// This one is over now. Several commands of one step in a row are one.
    pub(super) fn end(&mut self, phase: Phase) {
        let now = Instant::now();
        match self.ends.last_mut() {
            Some((last, end)) if *last == phase => *end = now,
            _ => self.ends.push((phase, now)),
        }
    }

    /// Each with its beginning and its end.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, Instant, Instant)> {
        let begins = std::iter::once(self.began).chain(self.ends.iter().map(|(_, end)| *end));
        begins.zip(&self.ends).map(|(from, (phase, to))| (*phase, from, *to))
    }
}

/// Is told the steps of every mail and every connection that was opened, with the relay's name.
pub(super) type Listener = dyn Fn(&str, &Steps) + Send + Sync;

/// Who listens, if anybody does.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<OnceLock<Arc<Listener>>>);

impl Heard {
    pub(super) fn listen(&self, listener: Arc<Listener>) {
        // The first one stays.
        drop(self.0.set(listener));
    }

    pub(super) fn tell(&self, relay: &str, steps: &Steps) {
        if let Some(listener) = self.0.get() {
            listener(relay, steps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_without_a_gap() {
        let mut steps = Steps::begin();
        let began = steps.began;
        for phase in [Phase::Ehlo, Phase::Auth, Phase::Auth, Phase::Mail] {
            steps.end(phase);
        }
        let told: Vec<_> = steps.iter().collect();
        assert_eq!(told.iter().map(|(phase, ..)| *phase).collect::<Vec<_>>(), [Phase::Ehlo, Phase::Auth, Phase::Mail]);
        assert_eq!(told[0].1, began);
        assert!(told.windows(2).all(|pair| pair[0].2 == pair[1].1) && told.iter().all(|(_, from, to)| from <= to));
    }
}
