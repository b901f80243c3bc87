//! Gathers single calls into batches that are committed together.
//!
//! Invariant: there is no timer. A batch is whatever queued up while the last one ran: an idle system adds no delay, and
//! a busy one pays for few commits.
//! Invariant: a row that the database refuses is found by halving the batch; its neighbours are committed.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{StoreError, within};

/// Rows at which a batch is full: beyond this it only takes longer.
const ROWS_FULL: usize = 64;
/// Bytes at which a batch is full: everybody in it waits for all of them.
const BYTES_FULL: usize = 1024 * 1024;
/// Calls that wait for a batch without holding up their callers' sending.
const QUEUE_MAX: usize = 512;
/// Times that a batch is repeated after a deadlock or serialisation failure before its callers are told to wait.
const REPEATS_MAX: usize = 10;

/// A batch that failed sooner than this is asked for once more.
const ASK_AGAIN_WITHIN: Duration = Duration::from_secs(1);

type Reply<O> = oneshot::Sender<Result<O, StoreError>>;

/// What one call adds to its batch.
pub(super) trait Load {
    /// Rows that it writes.
    fn rows(&self) -> usize {
        1
    }

    /// Roughly, its bytes on the wire and in the table, as far as they can be many.
    fn bytes(&self) -> usize {
        0
    }
}

/// A queue in front of one batched statement.
pub(super) struct Gatherer<I, O> {
    queue: mpsc::Sender<(I, Reply<O>)>,
}

impl<I, O> Gatherer<I, O>
where
    I: Load + Send + Sync + 'static,
    O: Send + 'static,
{
    /// Starts the task that runs `run` on every batch; `run` answers in the order of the batch.
    pub(super) fn start<F, Fut>(limit: Duration, run: F) -> Self
    where
        F: Fn(Arc<Vec<I>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<O>, StoreError>> + Send,
    {
        let (queue, mut waiting) = mpsc::channel::<(I, Reply<O>)>(QUEUE_MAX);
        tokio::spawn(async move {
            while let Some(first) = waiting.recv().await {
                let (rows, replies) = fill(first, &mut waiting);
                commit(limit, &run, rows, replies).await;
            }
        });
        Self { queue }
    }

    /// Waits until the batch that this row went into is committed.
    pub(super) async fn call(&self, row: I) -> Result<O, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Away("the store is closing".to_owned());
        self.queue.send((row, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What waits, until the batch is full; the call that fills it may be larger than a batch.
fn fill<I: Load, O>(first: (I, Reply<O>), waiting: &mut mpsc::Receiver<(I, Reply<O>)>) -> (Vec<I>, Vec<Reply<O>>) {
    let (mut rows, mut bytes) = (first.0.rows(), first.0.bytes());
    let mut calls = (vec![first.0], vec![first.1]);
    while rows < ROWS_FULL
        && bytes < BYTES_FULL
        && let Ok((call, reply)) = waiting.try_recv()
    {
        rows += call.rows();
        bytes += call.bytes();
        calls.0.push(call);
        calls.1.push(reply);
    }
    calls
}

async fn commit<I, O, F, Fut>(limit: Duration, run: &F, rows: Vec<I>, replies: Vec<Reply<O>>)
where
    F: Fn(Arc<Vec<I>>) -> Fut,
    Fut: Future<Output = Result<Vec<O>, StoreError>>,
{
    // Halves of a refused batch wait here; the first is always the next to run.
    let mut parts = VecDeque::from([(rows, replies)]);
    while let Some((rows, replies)) = parts.pop_front() {
        let rows = Arc::new(rows);
        let answer = run_repeating(limit, run, &rows).await;
        match answer {
            Ok(answers) => {
                debug_assert_eq!(answers.len(), replies.len(), "one answer a row");
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // A caller that went away does not want to know.
                    drop(reply.send(Ok(answer)));
                }
            }
            Err(StoreError::Data { .. }) if replies.len() > 1 => {
                let Ok(mut first) = Arc::try_unwrap(rows) else {
                    fail(replies, &StoreError::Away("a batch is still in use".to_owned()));
                    continue;
                };
                let mut first_replies = replies;
                let middle = first.len() / 2;
                let second = first.split_off(middle);
                let second_replies = first_replies.split_off(middle);
                parts.push_front((second, second_replies));
                parts.push_front((first, first_replies));
            }
            Err(error) => fail(replies, &error),
        }
    }
}

async fn run_repeating<I, O, F, Fut>(limit: Duration, run: &F, rows: &Arc<Vec<I>>) -> Result<Vec<O>, StoreError>
where
    F: Fn(Arc<Vec<I>>) -> Fut,
    Fut: Future<Output = Result<Vec<O>, StoreError>>,
{
    let mut repeats = 0;
    let mut may_ask_again = true;
    loop {
        let began = Instant::now();
        match within(limit, run(Arc::clone(rows))).await {
            // One connection that broke is no database that is away: the next one may do. Rows know themselves again by
            // their tokens, so asking again is safe.
            Err(StoreError::Away(why)) if may_ask_again && began.elapsed() < ASK_AGAIN_WITHIN => {
                may_ask_again = false;
                tracing::debug!(why, "asking the database once more");
            }
            Err(StoreError::Repeat(why)) if repeats < REPEATS_MAX => {
                repeats += 1;
                tracing::debug!(why, repeats, "repeating a batch");
            }
            Err(StoreError::Repeat(why)) => return Err(StoreError::Away(why)),
            other => return other,
        }
    }
}

fn fail<O>(replies: Vec<Reply<O>>, error: &StoreError) {
    for reply in replies {
        let copy = match error {
            StoreError::Data { sqlstate, message } => {
                StoreError::Data { sqlstate: sqlstate.clone(), message: message.clone() }
            }
            other => StoreError::Away(other.to_string()),
        };
        drop(reply.send(Err(copy)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    impl Load for i32 {}

    struct Large(usize, usize);

    impl Load for Large {
        fn rows(&self) -> usize {
            self.0
        }

        fn bytes(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn a_batch_is_full_by_rows_and_by_bytes_alike() {
        for (load, calls) in
            [((1, 1024), ROWS_FULL), ((40, 0), 2), ((100, 0), 1), ((1, 300 * 1024), 4), ((1, 9 << 20), 1)]
        {
            let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
            let call = || (Large(load.0, load.1), oneshot::channel::<Result<(), StoreError>>().0);
            for _ in 0..QUEUE_MAX {
                queue.try_send(call()).unwrap_or_else(|_| panic!("there is room"));
            }
            let (rows, replies) = fill(call(), &mut waiting);
            assert_eq!((rows.len(), replies.len()), (calls, calls), "{load:?}");
        }
    }

    fn refused() -> StoreError {
        StoreError::Data { sqlstate: "22021".into(), message: "invalid byte sequence".into() }
    }

    #[tokio::test]
    async fn one_bad_row_fails_alone() {
        let gatherer = Arc::new(Gatherer::start(LIMIT, |rows: Arc<Vec<i32>>| async move {
            if rows.contains(&13) { Err(refused()) } else { Ok(rows.iter().map(|n| n * 2).collect()) }
        }));
        let calls = (0..100).map(|n| {
            let gatherer = Arc::clone(&gatherer);
            tokio::spawn(async move { (n, gatherer.call(n).await) })
        });
        for call in calls.collect::<Vec<_>>() {
            let (n, answer) = call.await.expect("the task ran");
            match answer {
                Ok(double) => assert_eq!(double, n * 2),
                Err(StoreError::Data { .. }) => assert_eq!(n, 13),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn a_deadlock_is_repeated_and_nobody_notices() {
        let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let gatherer = Gatherer::start(LIMIT, move |rows: Arc<Vec<i32>>| {
            let first = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move { if first { Err(StoreError::Repeat("40P01".into())) } else { Ok(rows.to_vec()) } }
        });
        assert_eq!(gatherer.call(7).await.expect("repeated"), 7);
    }
}
