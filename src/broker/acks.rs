//! Acknowledgements of one channel, gathered for a moment and written together.
//!
//! A broker pays for each time it is woken up, not for each acknowledgement: written one by one at 3,000 a second, they cost
//! RabbitMQ 3.10 (quorum queue) 165 ms of processor time a thousand, ten at a time 70 ms. Where all before it is settled, one
//! acknowledgement speaks for many.
//!
//! Invariant: an acknowledgement for many never covers a delivery that is not settled.
//! Invariant: none waits for another's mail: what is handed over is written within `GATHER_MAX`, alone if need be.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lapin::{Acker, options::BasicAckOptions, types::DeliveryTag};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::sleep,
};

use super::SettleError;

/// Longest that an acknowledgement waits for others.
const GATHER_MAX: Duration = Duration::from_millis(4);
/// Share of what a consumer may hold that may wait; what waits holds back as many new deliveries.
const WAITING_SHARE: usize = 8;
/// Windows up to this size are so small that nothing waits.
const WINDOW_AT_ONCE: usize = 2 * WAITING_SHARE;
/// Settled tags behind a gap that are remembered; with more, the gap has come to stay.
const AHEAD_MAX: usize = 16 * 1024;

/// The acknowledgements of one channel. The task behind it ends with the last handle.
#[derive(Clone)]
pub(super) struct Acks {
    settled: mpsc::UnboundedSender<Settled>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What the task has not taken yet.
    waiting: AtomicUsize,
    /// As many as are not held back any longer.
    enough: AtomicUsize,
    is_enough: Notify,
}

/// A delivery that is dealt with.
enum Settled {
    /// To be acknowledged; who waits is told how that went.
    Ack(DeliveryTag, Acker, oneshot::Sender<Result<(), SettleError>>),
    /// Handed back already.
    HandedBack(DeliveryTag),
}

impl Acks {
    /// Starts the task for a new channel.
    pub(super) fn start() -> Self {
        let (settled, taken) = mpsc::unbounded_channel();
        let shared =
            Arc::new(Shared { waiting: AtomicUsize::new(0), enough: AtomicUsize::new(1), is_enough: Notify::new() });
        tokio::spawn(gather(taken, Arc::clone(&shared)));
        Self { settled, shared }
    }

    /// Says how many deliveries the consumer may hold from now on.
    pub(super) fn set_window(&self, window: u16) {
        let window = usize::from(window);
        let enough = if window <= WINDOW_AT_ONCE { 1 } else { window / WAITING_SHARE };
        self.shared.enough.store(enough, Ordering::Relaxed);
    }

    /// Returns once the acknowledgement was written.
    pub(super) async fn ack(&self, tag: DeliveryTag, acker: Acker) -> Result<(), SettleError> {
        let (done, outcome) = oneshot::channel();
        self.tell(Settled::Ack(tag, acker, done));
        // The task never ends before its last handle does, nor panics.
        outcome.await.unwrap_or(Err(SettleError::ChannelGone))
    }

    /// Notes that a delivery was handed back; only after that was written.
    pub(super) fn handed_back(&self, tag: DeliveryTag) {
        self.tell(Settled::HandedBack(tag));
    }

    fn tell(&self, settled: Settled) {
        let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        // The receiver lives as long as this handle.
        let _ = self.settled.send(settled);
        if waiting >= self.shared.enough.load(Ordering::Relaxed) {
            self.shared.is_enough.notify_one();
        }
    }
}

async fn gather(mut taken: mpsc::UnboundedReceiver<Settled>, shared: Arc<Shared>) {
    let mut prefix = Prefix::default();
    while let Some(first) = taken.recv().await {
        tokio::select! { () = shared.is_enough.notified() => {}, () = sleep(GATHER_MAX) => {} }
        let mut batch = vec![first];
        while let Ok(next) = taken.try_recv() {
            batch.push(next);
        }
        shared.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        write(&mut prefix, batch).await;
    }
}

async fn write(prefix: &mut Prefix, batch: Vec<Settled>) {
    let mut asked = Vec::with_capacity(batch.len());
    for settled in batch {
        match settled {
            Settled::Ack(tag, acker, done) => asked.push((tag, acker, done)),
            Settled::HandedBack(tag) => prefix.settle(tag),
        }
    }
    let tags: Vec<DeliveryTag> = asked.iter().map(|(tag, ..)| *tag).collect();
    let covering = prefix.settle_all(&tags);
    let (covered, alone): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|(tag, ..)| covering.is_some_and(|last| *tag <= last));
    let together = async {
        let Some(last) = covered.iter().find(|(tag, ..)| Some(*tag) == covering) else { return };
        let outcome = acknowledge(&last.1, true).await;
        for (.., done) in covered {
            let _ = done.send(outcome.clone());
        }
    };
    let apart = join_all(alone.into_iter().map(async |(_, acker, done)| {
        let _ = done.send(acknowledge(&acker, false).await);
    }));
    tokio::join!(together, apart);
}

async fn acknowledge(acker: &Acker, multiple: bool) -> Result<(), SettleError> {
    // `Ok(false)` is lapin's way to say that the channel died and nothing was sent.
    match acker.ack(BasicAckOptions { multiple }).await? {
        true => Ok(()),
        false => Err(SettleError::ChannelGone),
    }
}

/// Up to which tag everything is settled. Tags of a channel are 1, 2, 3 and so on.
#[derive(Debug, Default)]
struct Prefix {
    /// All tags up to this one are settled.
    through: DeliveryTag,
    /// Settled ones beyond it; there is a gap before each.
    ahead: BTreeSet<DeliveryTag>,
    /// Some delivery was never settled, and never will be: each tag speaks for itself.
    is_given_up: bool,
}

impl Prefix {
    fn settle(&mut self, tag: DeliveryTag) {
        if self.is_given_up || tag <= self.through {
            return;
        }
        self.ahead.insert(tag);
        while self.ahead.first().is_some_and(|first| *first == self.through + 1) {
            self.through += 1;
            self.ahead.pop_first();
        }
        if self.ahead.len() > AHEAD_MAX {
            self.is_given_up = true;
            self.ahead.clear();
        }
    }

    /// Counts these as settled, and names the one of them, if any, whose acknowledgement may speak for all before it: where
    /// it spares at least one.
    fn settle_all(&mut self, tags: &[DeliveryTag]) -> Option<DeliveryTag> {
        for tag in tags {
            self.settle(*tag);
        }
        let covered = || tags.iter().filter(|tag| **tag <= self.through && !self.is_given_up);
        covered().max().copied().filter(|_| covered().count() > 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_acknowledgement_speaks_for_what_has_no_gap_before_it() {
        let mut prefix = Prefix::default();
        assert_eq!(prefix.settle_all(&[2, 3]), None, "1 is not settled");
        assert_eq!(prefix.settle_all(&[1]), None, "it spares nothing");
        assert_eq!(prefix.settle_all(&[5, 4, 7]), Some(5));
        prefix.settle(6);
        assert_eq!(prefix.settle_all(&[8, 9]), Some(9), "6 was handed back");
    }

    #[test]
    fn a_gap_that_stays_is_given_up() {
        let mut prefix = Prefix::default();
        let most = DeliveryTag::try_from(AHEAD_MAX).expect("fits") + 2;
        for tag in 2..=most {
            assert_eq!(prefix.settle_all(&[tag]), None);
        }
        assert!(prefix.is_given_up && prefix.ahead.is_empty());
        assert_eq!(prefix.settle_all(&[1]), None);
        assert_eq!(prefix.settle_all(&[most + 1, most + 2]), None);
    }

    proptest! {
        /// Deliveries are settled in any order and any batches, some are handed back, some never settled.
        #[test]
        fn what_is_not_settled_is_never_covered(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            handed_back in prop::collection::btree_set(1..=60_u64, 0..10),
            never in prop::collection::btree_set(1..=60_u64, 0..3),
            sizes in prop::collection::vec(1..9_usize, 60),
        ) {
            let (mut prefix, mut settled) = (Prefix::default(), BTreeSet::<u64>::new());
            let mut rest: Vec<u64> = order.into_iter().filter(|tag| !never.contains(tag)).collect();
            for size in sizes {
                let batch: Vec<u64> = rest.drain(..size.min(rest.len())).collect();
                settled.extend(&batch);
                let (back, tags): (Vec<u64>, Vec<u64>) = batch.into_iter().partition(|tag| handed_back.contains(tag));
                back.into_iter().for_each(|tag| prefix.settle(tag));
                if let Some(last) = prefix.settle_all(&tags) {
                    prop_assert!(tags.contains(&last), "the broker knows a tag that is not acknowledged yet");
                    prop_assert!((1..=last).all(|tag| settled.contains(&tag)));
                }
            }
            let through = (1..=60).find(|tag| never.contains(tag)).map_or(60, |gap| gap - 1);
            prop_assert_eq!(prefix.through, through, "it reaches the first that is never settled");
        }
    }
}
