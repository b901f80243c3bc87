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

/// Rows in one statement at most: beyond this a batch only takes longer.
const BATCH_MAX: usize = 128;
/// Times that a batch is repeated after a deadlock or serialisation failure before its callers are told to wait.
const REPEATS_MAX: usize = 10;

/// A batch that failed sooner than this is asked for once more.
const ASK_AGAIN_WITHIN: Duration = Duration::from_secs(1);

type Reply<O> = oneshot::Sender<Result<O, StoreError>>;

/// A queue in front of one batched statement.
pub(super) struct Gatherer<I, O> {
    queue: mpsc::Sender<(I, Reply<O>)>,
}

impl<I, O> Gatherer<I, O>
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    /// Starts the task that runs `run` on every batch; `run` answers in the order of the batch.
    pub(super) fn start<F, Fut>(limit: Duration, run: F) -> Self
    where
        F: Fn(Arc<Vec<I>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<O>, StoreError>> + Send,
    {
        let (queue, mut waiting) = mpsc::channel::<(I, Reply<O>)>(BATCH_MAX * 4);
        tokio::spawn(async move {
            let mut taken = Vec::with_capacity(BATCH_MAX);
            while waiting.recv_many(&mut taken, BATCH_MAX).await > 0 {
                let (rows, replies): (Vec<I>, Vec<Reply<O>>) = taken.drain(..).unzip();
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
