//! One lane's line to one relay: the mails that wait for a connection, and the connections that wait for a mail.
//!
//! Mails are not bound to a connection before one takes them: an idle connection comes first, then one whose mail waits
//! for the reply to its final dot and can let another follow in the same flight.
//!
//! Invariant: at most `MAILS_PER_CONNECTION` places are given for each open connection: one mail on the wire, one
//! following.
//! Invariant: a mail that was handed over is taken by a connection, or fails at once when none is left to take it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, Semaphore, oneshot};

use super::{steps::Steps, transaction::OutgoingMail};
use crate::email::{LinkFault, Phase, SendReport};

/// One on the wire, one following.
pub(super) const MAILS_PER_CONNECTION: usize = 2;

/// A mail handed over, and who wants to know.
pub(super) struct Job {
    pub(super) mail: OutgoingMail,
    done: oneshot::Sender<Done>,
}

/// What became of it.
pub(super) struct Done {
    pub(super) report: SendReport,
    /// No mail had gone over that connection before.
    pub(super) is_fresh: bool,
    /// Of the transaction, as far as it came.
    pub(super) steps: Option<Steps>,
    /// Of opening the connection, if it was opened for this mail when the place had been given already.
    pub(super) opening: Option<Steps>,
}

impl Job {
    pub(super) fn new(mail: OutgoingMail) -> (Self, oneshot::Receiver<Done>) {
        let (done, answer) = oneshot::channel();
        (Self { mail, done }, answer)
    }

    pub(super) fn finish(self, report: SendReport, is_fresh: bool) {
        self.finish_after(Done { report, is_fresh, steps: None, opening: None });
    }

    /// The same with what the transaction was like.
    pub(super) fn finish_after(self, done: Done) {
        // Whoever asked may be gone.
        drop(self.done.send(done));
    }

    /// The connection that should have carried it is gone, and no byte of it was sent.
    pub(super) fn fail(self) {
        self.finish(SendReport::Broken { phase: Phase::Mail, fault: LinkFault::Closed }, false);
    }

    /// Why it must not go any more, if so: by its own rules, or because nobody is there who could record its outcome.
    pub(super) fn obstacle(&self) -> Option<String> {
        if self.done.is_closed() {
            return Some("nobody waits for its outcome any more".to_owned());
        }
        self.mail.obstacle().map(str::to_owned)
    }
}

/// A lane's connections to a relay, and its mails for them.
pub(super) struct Line {
    pub(super) permits: Arc<Semaphore>,
    limit: usize,
    state: Mutex<State>,
    idle_wake: Notify,
    follow_wake: Notify,
    /// A connection was opened, could not be opened, or has ended. To be enabled before [`Line::entry`] is asked.
    pub(super) moved: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    places: usize,
    opening: usize,
    open: usize,
    /// Open ones that wait for a mail.
    idle: usize,
    /// Open ones that have a mail in hand.
    busy: usize,
}

/// What there is for a place that was just given.
pub(super) enum Entry<'a> {
    /// Room on a connection that is open.
    Shares,
    /// A connection of its own, to be opened.
    Opens(Opening<'a>),
    /// One is being opened; look again when something has moved.
    Waits,
    /// Nothing.
    None,
}

/// A connection that is being opened; not any more when it is dropped.
pub(super) struct Opening<'a> {
    line: &'a Line,
}

impl Line {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit * MAILS_PER_CONNECTION)),
            limit,
            state: Mutex::default(),
            idle_wake: Notify::new(),
            follow_wake: Notify::new(),
            moved: Notify::new(),
        }
    }

    /// Nothing panics while holding this, and what it holds is sound whoever panicked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One place more is taken.
    pub(super) fn take_place(&self) {
        self.state().places += 1;
    }

    /// One place less is taken.
    pub(super) fn free_place(&self) {
        self.state().places -= 1;
    }

    /// Places taken.
    pub(super) fn places(&self) -> usize {
        self.state().places
    }

    /// Connections that are open and have nothing to do.
    pub(super) fn idle(&self) -> usize {
        self.state().idle
    }

    /// Whether one place more would have room on the connections that are open.
    pub(super) fn has_room(&self) -> bool {
        let state = self.state();
        state.places < state.open * MAILS_PER_CONNECTION
    }

    /// What there is for a place that was just taken. Each mail gets a connection of its own while there may be more of
    /// them.
    pub(super) fn entry(&self, may_open: bool) -> Entry<'_> {
        let mut state = self.state();
        if may_open && state.open + state.opening < state.places.min(self.limit) {
            state.opening += 1;
            return Entry::Opens(Opening { line: self });
        }
        if state.places <= state.open * MAILS_PER_CONNECTION {
            Entry::Shares
        } else if state.opening > 0 {
            Entry::Waits
        } else {
            Entry::None
        }
    }

    /// The right to open a connection for which there is no mail yet, as long as there are fewer than this.
    pub(super) fn opens_ahead(&self, wanted: usize) -> Option<Opening<'_>> {
        let mut state = self.state();
        let may = state.open + state.opening < wanted.min(self.limit);
        may.then(|| {
            state.opening += 1;
            Opening { line: self }
        })
    }

    /// Hands a mail over.
    pub(super) fn hand_over(&self, job: Job) {
        let mut state = self.state();
        if state.open == 0 {
            drop(state);
            return job.fail();
        }
        state.waiting.push_back(job);
        let somebody_is_idle = state.idle > 0;
        drop(state);
        if somebody_is_idle {
            // The one used last is used next, so that what is too much grows old and goes.
            self.idle_wake.notify_last();
        } else {
            self.follow_wake.notify_one();
        }
    }

    /// The next mail, for a connection that has nothing to do. Cancel-safe.
    pub(super) async fn next(&self) -> Job {
        let _idle = Idle::new(self);
        loop {
            let woken = self.idle_wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if let Some(job) = self.state().waiting.pop_front() {
                return job;
            }
            woken.await;
        }
    }

    /// A mail that no idle connection will take.
    pub(super) fn follower(&self) -> Option<Job> {
        let mut state = self.state();
        if state.waiting.len() > state.idle { state.waiting.pop_front() } else { None }
    }

    /// Returns when there may be a mail to follow. Cancel-safe.
    pub(super) async fn follower_comes(&self) {
        let woken = self.follow_wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let is_there = {
            let state = self.state();
            state.waiting.len() > state.idle
        };
        if !is_there {
            woken.await;
        }
    }

    /// A connection has ended, unless a mail waits that no idle one will take: then it is opened again for that.
    pub(super) fn leave_or_take(&self) -> Option<Job> {
        let mut state = self.state();
        if state.waiting.len() > state.idle {
            return state.waiting.pop_front();
        }
        drop(state);
        self.leave();
        None
    }

    /// A connection has ended. What the others have no room for fails: its sender finds another place.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        state.open -= 1;
        let keep = state.open.min(state.waiting.len());
        let orphans = state.waiting.split_off(keep);
        drop(state);
        self.moved.notify_waiters();
        for job in orphans {
            job.fail();
        }
    }

    /// Says that a connection has a mail in hand, until this is dropped.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.state().busy += 1;
        Busy { line: self }
    }

    /// Whether fewer connections than this would be left without one of them.
    pub(super) fn is_needed(&self, wanted: usize) -> bool {
        self.state().open <= wanted
    }

    /// Returns when every open connection has a mail in hand.
    pub(super) async fn until_quiet(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.state();
                if state.open == state.busy {
                    return;
                }
            }
            moved.await;
        }
    }
}

impl Opening<'_> {
    /// It is open.
    pub(super) fn opened(self) {
        self.line.state().open += 1;
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.line.state().opening -= 1;
        self.line.moved.notify_waiters();
    }
}

/// Counts as having a mail in hand for as long as it lives.
pub(super) struct Busy<'a> {
    line: &'a Line,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.line.state().busy -= 1;
        self.line.moved.notify_waiters();
    }
}

/// Counts as idle for as long as it lives.
struct Idle<'a> {
    line: &'a Line,
}

impl<'a> Idle<'a> {
    fn new(line: &'a Line) -> Self {
        line.state().idle += 1;
        Self { line }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.line.state().idle -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::email::EmailAddress;

    fn job(to: &str) -> (Job, oneshot::Receiver<Done>) {
        let address = |text: &str| EmailAddress::parse(text).expect("valid");
        Job::new(OutgoingMail::new(address("noreply@example.bj"), address(to), ""))
    }

    /// A line with this many open connections, and a place taken for each mail of this many.
    fn line(open: usize, places: usize) -> Line {
        let line = Line::new(4);
        for _ in 0..places {
            line.take_place();
        }
        for _ in 0..open {
            line.opens_ahead(4).expect("there is room").opened();
        }
        line
    }

    #[test]
    fn each_mail_gets_a_connection_of_its_own_while_there_may_be_more_of_them() {
        let line = line(1, 2);
        let Entry::Opens(opening) = line.entry(true) else { panic!("the second mail has none") };
        line.take_place();
        assert!(matches!(line.entry(false), Entry::Waits), "one is being opened, and the other is full");
        opening.opened();
        assert!(matches!(line.entry(false), Entry::Shares));
        assert!(line.has_room());
        line.take_place();
        line.take_place();
        assert!(!line.has_room());
        assert!(matches!(line.entry(false), Entry::None), "two on each is all there is");
    }

    #[tokio::test]
    async fn a_mail_without_a_connection_fails_at_once_and_so_does_what_others_have_no_room_for() {
        let (orphan, answer) = job("a@example.bj");
        line(0, 1).hand_over(orphan);
        let broken = SendReport::Broken { phase: Phase::Mail, fault: LinkFault::Closed };
        assert_eq!(answer.await.expect("an answer").report, broken);

        let line = line(2, 3);
        let mut answers = Vec::new();
        for n in 0..3 {
            let (job, answer) = job(&format!("n{n}@example.bj"));
            line.hand_over(job);
            answers.push(answer);
        }
        line.leave();
        let mut last = answers.pop().expect("three");
        assert_eq!(answers.pop().expect("three").await.expect("an answer").report, broken);
        assert_eq!(last.try_recv().expect("an answer").report, broken);
        assert!(answers[0].try_recv().is_err(), "one may follow on the connection that is left");
    }

    #[tokio::test]
    async fn an_idle_connection_comes_before_one_that_could_let_a_mail_follow() {
        let line = line(2, 2);
        let mut idle = Box::pin(line.next());
        assert!(futures_util::poll!(&mut idle).is_pending());
        let (job, _answer) = job("a@example.bj");
        line.hand_over(job);
        assert!(line.follower().is_none());
        assert!(line.follower_comes().now_or_never().is_none());
        assert_eq!(idle.await.mail.to().as_str(), "a@example.bj");
    }
}
