//! Names, arguments and declaration of every exchange and queue.
//!
//! Invariant: every quorum queue has an explicit, high delivery limit: the broker's count never judges a message.

use std::time::Duration;

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::BrokerError;
use crate::{
    config::{BrokerConfig, QueueType, TopologyMode},
    email::{Lane, PerLane},
};

/// Where producers publish.
pub const REQUESTS: &str = "email.requests";
/// Where a message goes that no binding matched: exchange and queue.
pub const UNROUTED: &str = "email.unrouted";
/// Where final failures go: exchange and queue.
pub const DEAD: &str = "email.dead";
/// Journal of the fast lane while the database is away.
pub const AUDIT: &str = "email.audit";
/// Where events about mails come out.
pub const EVENTS: &str = "email.events";

/// High enough never to be reached: quorum queues of RabbitMQ 4 default to 20, which would drop what only waited.
const DELIVERY_LIMIT: i64 = 1_000_000;
/// Priorities of a classic lane: 0 to 9 are used (contract: P0 9, P1 6, P2 3, P3 0).
const CLASSIC_MAX_PRIORITY: i32 = 9;

/// AMQP's code for a lack of permission.
const ACCESS_REFUSED: u16 = 403;
/// What the broker says of itself and not of what was asked: an operator closed the connection, it lacks something, it erred.
const ABOUT_THE_BROKER: [u16; 3] = [320, 506, 541];

/// The queue of a lane.
#[must_use]
pub fn lane_queue(lane: Lane) -> String {
    format!("email.{lane}")
}

/// The queue where a message of this lane waits this long.
#[must_use]
pub fn retry_queue(lane: Lane, delay: Duration) -> String {
    format!("email.retry.{lane}.{}", delay_word(delay))
}

/// `5s`, `10m`, `2h`, `1d`, or `250ms`: the largest unit that needs no fraction.
#[must_use]
pub fn delay_word(delay: Duration) -> String {
    let ms = delay.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// What this daemon expects on the broker.
#[derive(Debug, Clone)]
pub struct Topology {
    mode: TopologyMode,
    queue_type: QueueType,
    ladders: PerLane<Vec<Duration>>,
}

enum Object {
    Exchange { name: &'static str, kind: ExchangeKind, arguments: FieldTable },
    Queue { name: String, arguments: FieldTable },
}

struct Binding {
    queue: String,
    exchange: &'static str,
    key: &'static str,
}

impl Topology {
    /// The topology that these settings ask for.
    #[must_use]
    pub fn new(config: &BrokerConfig) -> Self {
        Self { mode: config.topology, queue_type: config.queue_type, ladders: config.ladders.clone() }
    }

    /// The rungs of a lane's ladder.
    #[must_use]
    pub fn ladder(&self, lane: Lane) -> &[Duration] {
        self.ladders.get(lane)
    }

    /// The longest rung that does not wait past `due_in`, or the shortest one: where a message waits that is due then.
    #[must_use]
    pub fn rung(&self, lane: Lane, due_in: Duration) -> Duration {
        let ladder = self.ladder(lane);
        ladder.iter().rev().find(|rung| **rung <= due_in).or(ladder.first()).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Declares, verifies or trusts, as `AMQP_TOPOLOGY` says.
    ///
    /// # Errors
    /// When an object is missing (verify) or exists with other arguments: the message names object, argument and values.
    pub async fn establish(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.establish_parts(connection, self.objects(), self.bindings()).await
    }

    /// The same for one queue that was found missing, and leaves the others alone.
    ///
    /// They may be missing too, and their consumers about to hear of it. RabbitMQ hands a quorum queue that is declared again
    /// in that moment to the consumer of the one before, and what it delivers there arrives nowhere. So a queue with a
    /// consumer is best declared by that consumer.
    ///
    /// # Errors
    /// As [`Self::establish`].
    pub async fn restore_queue(&self, connection: &Connection, queue: &str) -> Result<(), BrokerError> {
        let mut objects = self.objects();
        objects.retain(|object| object.name() == ("queue", queue));
        let mut bindings = self.bindings();
        bindings.retain(|binding| binding.queue == queue);
        self.establish_parts(connection, objects, bindings).await
    }

    /// The same for one exchange, which must not need a binding of ours.
    ///
    /// # Errors
    /// As [`Self::establish`].
    pub async fn restore_exchange(&self, connection: &Connection, exchange: &str) -> Result<(), BrokerError> {
        let mut objects = self.objects();
        objects.retain(|object| object.name() == ("exchange", exchange));
        self.establish_parts(connection, objects, Vec::new()).await
    }

    async fn establish_parts(
        &self,
        connection: &Connection,
        objects: Vec<Object>,
        bindings: Vec<Binding>,
    ) -> Result<(), BrokerError> {
        match self.mode {
            TopologyMode::None => Ok(()),
            TopologyMode::Verify => verify(connection, &objects).await,
            TopologyMode::Declare => declare(connection, &objects, &bindings).await,
        }
    }

    /// In an order in which every reference points at something that is already there.
    fn objects(&self) -> Vec<Object> {
        let plain = FieldTable::default;
        let mut requests = FieldTable::default();
        requests.insert("alternate-exchange".into(), text(UNROUTED));
        let mut all = vec![
            Object::Exchange { name: UNROUTED, kind: ExchangeKind::Fanout, arguments: plain() },
            Object::Exchange { name: DEAD, kind: ExchangeKind::Fanout, arguments: plain() },
            Object::Exchange { name: EVENTS, kind: ExchangeKind::Topic, arguments: plain() },
            Object::Exchange { name: REQUESTS, kind: ExchangeKind::Topic, arguments: requests },
            Object::Queue { name: UNROUTED.to_owned(), arguments: self.resting_place() },
            Object::Queue { name: DEAD.to_owned(), arguments: self.resting_place() },
            Object::Queue { name: AUDIT.to_owned(), arguments: quorum() },
        ];
        for lane in Lane::ALL {
            all.push(Object::Queue { name: lane_queue(lane), arguments: self.lane_arguments() });
            for delay in self.ladder(lane) {
                all.push(Object::Queue { name: retry_queue(lane, *delay), arguments: retry_arguments(lane, *delay) });
            }
        }
        all
    }

    fn bindings(&self) -> Vec<Binding> {
        let lane = |lane, key| Binding { queue: lane_queue(lane), exchange: REQUESTS, key };
        vec![
            lane(Lane::Fast, "*.p0"),
            lane(Lane::Standard, "*.p1"),
            lane(Lane::Standard, "*.p2"),
            lane(Lane::Bulk, "*.p3"),
            Binding { queue: UNROUTED.to_owned(), exchange: UNROUTED, key: "" },
            Binding { queue: DEAD.to_owned(), exchange: DEAD, key: "" },
        ]
    }

    fn resting_place(&self) -> FieldTable {
        match self.queue_type {
            QueueType::Quorum => quorum(),
            QueueType::Classic => typed("classic"),
        }
    }

    fn lane_arguments(&self) -> FieldTable {
        let mut arguments = self.resting_place();
        match self.queue_type {
            QueueType::Quorum => at_least_once(&mut arguments),
            QueueType::Classic => {
                arguments.insert("x-max-priority".into(), AMQPValue::LongInt(CLASSIC_MAX_PRIORITY));
            }
        }
        arguments.insert("x-dead-letter-exchange".into(), text(DEAD));
        arguments
    }
}

async fn verify(connection: &Connection, objects: &[Object]) -> Result<(), BrokerError> {
    let mut channel = connection.create_channel().await?;
    for object in objects {
        let (what, name) = object.name();
        object.state(&channel, true).await.map_err(|error| explain(what, name, error))?;
        // Looking does not compare arguments; declaring what is there does, and changes nothing.
        match object.state(&channel, false).await {
            Ok(()) => {}
            Err(error) if refusal_code(&error) == Some(ACCESS_REFUSED) => {
                tracing::debug!(object = name, "its arguments cannot be compared without the right to configure it");
                // The refusal has closed the channel.
                channel = connection.create_channel().await?;
            }
            Err(error) => return Err(explain(what, name, error)),
        }
    }
    channel.close(200, "verified".into()).await?;
    Ok(())
}

async fn declare(connection: &Connection, objects: &[Object], bindings: &[Binding]) -> Result<(), BrokerError> {
    // One channel will do: the first refusal closes it, and the first refusal is reported.
    let channel = connection.create_channel().await?;
    for object in objects {
        let (what, name) = object.name();
        object.state(&channel, false).await.map_err(|error| explain(what, name, error))?;
    }
    for binding in bindings {
        channel
            .queue_bind(
                binding.queue.as_str().into(),
                binding.exchange.into(),
                binding.key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| explain("binding of queue", &binding.queue, error))?;
    }
    channel.close(200, "bound".into()).await?;
    Ok(())
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn typed(queue_type: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text(queue_type));
    arguments
}

fn quorum() -> FieldTable {
    let mut arguments = typed("quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    arguments
}

/// The broker's own dead-lettering waits for the target's confirmation; it needs reject-publish to be allowed to.
fn at_least_once(arguments: &mut FieldTable) {
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
}

/// Always quorum, whatever the lanes are: a classic queue hands over at most once, and a retry must not be lost.
fn retry_arguments(lane: Lane, delay: Duration) -> FieldTable {
    let mut arguments = quorum();
    at_least_once(&mut arguments);
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(&lane_queue(lane)));
    let ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ms));
    arguments
}

impl Object {
    fn name(&self) -> (&'static str, &str) {
        match self {
            Self::Exchange { name, .. } => ("exchange", name),
            Self::Queue { name, .. } => ("queue", name),
        }
    }

    async fn state(&self, channel: &Channel, passive: bool) -> Result<(), lapin::Error> {
        match self {
            Self::Exchange { name, kind, arguments } => {
                let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(ShortString::from(*name), kind.clone(), options, arguments.clone()).await?;
            }
            Self::Queue { name, arguments } => {
                let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(name.as_str().into(), options, arguments.clone()).await?;
            }
        }
        Ok(())
    }
}

fn refusal_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => Some(refusal.get_id()),
        _ => None,
    }
}

/// Turns the broker's refusal into one sentence that says what to do.
pub(super) fn explain(what: &str, name: &str, error: lapin::Error) -> BrokerError {
    let ErrorKind::ProtocolError(refusal) = error.kind() else {
        return BrokerError::Amqp(error);
    };
    // The broker names the argument and both values in words only ("inequivalent arg 'x' for queue 'q' in vhost '/':
    // received 'a' but current is 'b'"), so its sentence is passed on.
    let said = refusal.get_message().as_str().to_owned();
    match refusal.get_id() {
        // Another connection will do.
        code if ABOUT_THE_BROKER.contains(&code) => BrokerError::Amqp(error),
        406 => BrokerError::Topology(format!(
            "{what} {name} exists with other arguments than these settings ask for: {said}. Delete it (its messages \
             first), or change AMQP_QUEUE_TYPE or the ladders to match, or set AMQP_TOPOLOGY=none"
        )),
        404 => BrokerError::Missing(format!(
            "{what} {name} does not exist: {said}. Create it, or let the daemon do so with AMQP_TOPOLOGY=declare"
        )),
        ACCESS_REFUSED => BrokerError::Topology(format!(
            "{what} {name}: the user of AMQP_URL may not do this: {said}. Grant the permission, or declare the topology \
             beforehand and set AMQP_TOPOLOGY=none"
        )),
        _ => BrokerError::Topology(format!("{what} {name}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_an_operator_closes_says_nothing_about_a_queue() {
        use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
        let explained = |kind: AMQPErrorKind| {
            let refusal = AMQPError::new(kind, "said".into());
            explain("queue", "email.fast", lapin::Error::from(ErrorKind::ProtocolError(refusal)))
        };
        for kind in [AMQPHardError::CONNECTIONFORCED, AMQPHardError::RESOURCEERROR, AMQPHardError::INTERNALERROR] {
            assert!(matches!(explained(kind.into()), BrokerError::Amqp(_)));
        }
        assert!(matches!(explained(AMQPSoftError::PRECONDITIONFAILED.into()), BrokerError::Topology(_)));
        assert!(matches!(explained(AMQPSoftError::NOTFOUND.into()), BrokerError::Missing(_)));
        assert!(matches!(explained(AMQPHardError::NOTALLOWED.into()), BrokerError::Topology(_)));
    }

    #[test]
    fn a_delay_is_named_by_its_largest_whole_unit() {
        for (ms, word) in [(250, "250ms"), (1000, "1s"), (90_000, "90s"), (300_000, "5m"), (7_200_000, "2h")] {
            assert_eq!(delay_word(Duration::from_millis(ms)), word);
        }
    }

    #[test]
    fn a_message_waits_on_the_longest_rung_that_is_not_too_long() {
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        let topology = Topology {
            mode: TopologyMode::None,
            queue_type: QueueType::Quorum,
            ladders: PerLane::from_fn(|_| seconds(&[10, 300, 1800])),
        };
        for (due_in, rung) in [(0, 10), (10, 10), (299, 10), (300, 300), (4000, 1800)] {
            assert_eq!(topology.rung(Lane::Standard, Duration::from_secs(due_in)), Duration::from_secs(rung));
        }
    }
}
