//! Sees that a consumer is gone although nobody has said so.
//!
//! A stream can stay silent for ever: a cancellation that was lost, a queue that was declared again under its old consumer, a
//! broker that hangs. So the broker itself is asked, every few seconds, over the connection that consumes.

use std::{sync::atomic::Ordering, time::Duration};

use lapin::{Channel, Connection};

use super::{
    BrokerError, Link,
    count::{self, Count},
    held::Pulse,
};

/// How often the broker is asked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Looks in a row at which messages waited, nothing was delivered and nothing was at work.
const STARVED_MAX: u32 = 2;

/// One look at a queue.
#[derive(Debug, Clone, Copy)]
struct Look {
    ready: u32,
    consumers: u32,
    taken: u64,
    at_work: usize,
}

/// What two looks say, pure: whether the consumer starves, or why it is gone.
fn judge(before: Look, now: Look, starved: u32) -> Result<u32, String> {
    if now.consumers == 0 {
        return Err("the broker does not know our consumer any more".to_owned());
    }
    let is_starving = now.ready > 0 && now.at_work == 0 && now.taken == before.taken;
    match if is_starving { starved + 1 } else { 0 } {
        starved if starved >= STARVED_MAX => Err(format!("{} messages wait and none is delivered", now.ready)),
        starved => Ok(starved),
    }
}

/// Watches until the consumer is lost, and says why.
pub(super) async fn watch(link: &Link, channel: &Channel, queue: &str, pulse: &Pulse) -> String {
    let mut before = Look { ready: 0, consumers: 1, taken: 0, at_work: 0 };
    let mut starved = 0;
    let mut looking = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let connection = link.get().await;
        if !channel.status().connected() {
            return "the channel is closed".to_owned();
        }
        let count = match tokio::time::timeout(ANSWER_MAX, look(&connection, &mut looking, queue)).await {
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return error.to_string(),
            // Nobody answers: the connection is given up, or the next subscription would ask the same one.
            Err(_) => {
                link.give_up(&connection).await;
                return format!("the broker does not answer within {} s", ANSWER_MAX.as_secs());
            }
        };
        let now = Look {
            ready: count.ready,
            consumers: count.consumers,
            taken: pulse.taken.load(Ordering::Relaxed),
            at_work: pulse.at_work.load(Ordering::Relaxed),
        };
        starved = match judge(before, now, starved) {
            Ok(starved) => starved,
            Err(why) => return why,
        };
        before = now;
    }
}

/// Asks over a channel of its own, which a refusal would close.
async fn look(connection: &Connection, looking: &mut Option<Channel>, queue: &str) -> Result<Count, BrokerError> {
    let channel = match looking.take().filter(|channel| channel.status().connected()) {
        Some(channel) => channel,
        None => connection.create_channel().await?,
    };
    let counted = count::count(&channel, queue).await?;
    *looking = Some(channel);
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Look = Look { ready: 0, consumers: 1, taken: 5, at_work: 0 };

    #[test]
    fn a_consumer_that_the_broker_does_not_know_is_lost_at_once() {
        assert!(judge(IDLE, Look { consumers: 0, ..IDLE }, 0).is_err());
    }

    #[test]
    fn one_that_starves_is_lost_after_a_while_and_one_that_is_busy_is_not() {
        let starving = Look { ready: 9, ..IDLE };
        assert_eq!(judge(IDLE, starving, 0), Ok(1));
        assert!(judge(starving, starving, 1).is_err());
        assert_eq!(judge(starving, Look { taken: 6, ..starving }, 1), Ok(0), "something came");
        assert_eq!(judge(starving, Look { at_work: 1, ..starving }, 1), Ok(0), "it holds what it may hold");
        assert_eq!(judge(starving, IDLE, 1), Ok(0), "nothing waits");
    }
}
