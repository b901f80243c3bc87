//! READ FIRST: the life of one message, in order.
//!
//! ```text
//! consume -> decode -> render -> (fetch) -> admit -> deliver -> settle
//! ```
//!
//! The stages are leaves: they return values, and all branching is here. What each failure becomes:
//!
//! | stage | failure | becomes |
//! |---|---|---|
//! | (before) | it came back and no row says why | counted; from the second time on worked on alone; parked as poison |
//! | decode | not a request, or it breaks a limit | dead letter; the letter is the record |
//! | render | template, variable, attachment | row `failed`, dead letter |
//! | fetch | an attachment is not at hand | row put off without a try, delayed copy; in the end `failed`, dead letter |
//! | admit | duplicate, not due, busy, conflict | ack, delayed copy, dead letter |
//! | admit | store away | handed back; the fast lane goes on with a journal (`without_store`) |
//! | deliver | what the relay said, or the link's end | the row, as [`crate::retry`] decides |
//! | settle | broker away | unacknowledged: it comes back and finds its rows |
//!
//! Invariant: write, act, write, ack. The row says `sending` before the first SMTP byte, the outcome is committed after the
//! last one, and only then is the delivery settled.
//! Invariant: who has the mail is known by the rows, in the fast lane by the copy as well: a daemon without a database may have
//! sent it, and its journal may still be on its way.
//! Invariant: a delivery that cannot be settled is dropped unacknowledged. Nothing is lost: the broker has it.

/// Stage 2.
pub mod decode;

/// Stage 3.
mod render;

/// Between them, for what a request only refers to.
mod fetch;

/// What was made of a request so far, for the stages from here on.
mod message;

/// Stage 4.
mod admit;

/// Stage 5.
mod deliver;

/// What a mail says of itself to mail providers.
mod headers;

/// What the recipients' fates come to: how the delivery leaves its queue.
mod settlement;

/// Stage 6.
mod settle;

/// What a dead letter says.
mod letter;

/// The fast lane while the database is away: stages 4 to 6 with a journal instead.
mod without_store;

/// What was sent that way, to recognise duplicates.
mod memory;

/// Who is still to get a request, as its copies say.
mod pending;

/// Messages that may be what takes the daemon down.
mod quarantine;

/// Calls to a store that may be away.
mod patience;

/// Bytes at work.
mod budget;

/// What traces tell of a message.
mod traced;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use self::{budget::Budget, memory::Memory, quarantine::Quarantine, settlement::Settlement};
use self::{
    budget::recipients_at_once,
    decode::Decoded,
    fetch::{Archive, Fetched, Missing, may_have_words},
    message::Message,
    pending::{Left, Tries},
    quarantine::Suspicion,
    render::Rendering,
};
use crate::{
    broker::{Delivery, Publisher, Topology},
    config::{MailConfig, PipelineConfig},
    email::{EmailRequest, Lane, PerLane, Reason, Status, UnsubscribeLinks},
    faults::{self, Point},
    journal::{Journal, JournalError},
    lanes::Pauses,
    metrics::Metrics,
    mime::dkim::SigningKey,
    smtp::Relays,
    store::{Standing, Store, journal::Entry},
    telemetry::span::Tracer,
    templates::Catalogue,
};

/// How long a delivery waits for the journal before it makes room for others.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// A message that crashed a stage this often by itself is parked.
const CRASHES_MAX: i32 = 3;

/// Everything a message needs on its way.
pub struct Pipeline {
    /// Limits and rules.
    pub rules: PipelineConfig,
    /// What every mail carries.
    pub mail: MailConfig,
    /// What signs it.
    pub keys: Vec<Arc<SigningKey>>,
    /// How people unsubscribe; nothing: no marketing mail is made.
    pub unsubscribe: Option<Arc<UnsubscribeLinks>>,
    /// Templates, compiled.
    pub catalogue: Arc<Catalogue>,
    /// The audit.
    pub store: Arc<Store>,
    /// The relays.
    pub relays: Arc<Relays>,
    /// For retry copies and dead letters: each lane has its own channels.
    pub publishers: PerLane<Arc<Publisher>>,
    /// Names of queues.
    pub topology: Topology,
    /// Whether feedback can settle an unknown outcome.
    pub has_feedback: bool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is traced.
    pub tracer: Tracer,
    /// Messages under suspicion.
    pub quarantine: Quarantine,
    /// Bytes of large messages that are worked on at once.
    pub budget: Budget,
    /// What went out while the database was away.
    pub memory: Memory,
    /// Where that is told, and written into the audit.
    pub journal: Arc<Journal>,
    /// Which lanes take nothing now.
    pub pauses: Arc<Pauses>,
    /// The daemon stops: hand back what has not reached the relay.
    pub stop: CancellationToken,
}

/// What became of one recipient in this delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Over, here and now.
    Over(Status),
    /// It was over before: this delivery is a duplicate.
    Duplicate,
    /// To be tried again; the row says so since this delivery.
    Retry(Duration, Tries),
    /// To be looked at again; nothing new was decided.
    Wait(Duration, Tries),
    /// The same, because somebody else may have it on the wire.
    Busy(Tries),
    /// Over, and not well: a dead letter is owed.
    Dead { recipient: String, reason: Reason, error: String, attempts: i32 },
    /// It failed, and its dead letter is owed; only the rows, which cannot be asked, know why.
    Owed(Tries),
    /// A stage panicked on it, with these words; nothing was sent.
    Crashed(String),
    /// The daemon stops, or the database is away.
    HandBack,
    /// The daemon stops before its outcome could be written down anywhere.
    Unwritten,
}

/// Why a message cannot go on now.
enum Halt {
    /// The database is away.
    Away,
    /// The daemon stops, or the delivery is somebody else's by now.
    Stopped,
    /// The database will never take what it was given.
    Refused(String),
}

/// What a delivery came to.
struct Carried {
    settlement: Settlement,
    /// Entries of the journal that are owed: once the settlement is confirmed, before the acknowledgement.
    afterwards: Vec<Entry>,
    /// Workers that died on it were counted.
    is_counted: bool,
}

impl From<Settlement> for Carried {
    fn from(settlement: Settlement) -> Self {
        Self { settlement, afterwards: Vec::new(), is_counted: false }
    }
}

impl Pipeline {
    /// Carries one delivery to its settlement. Never panics, never fails: what goes wrong is a settlement too.
    pub async fn carry(self: Arc<Self>, mut delivery: Delivery) {
        let lane = delivery.envelope.lane;
        let span = tracing::info_span!(
            "message",
            lane = lane.name(),
            request.id = tracing::field::Empty,
            template = tracing::field::Empty,
        );
        let _in_flight = self.metrics.taken(&delivery.envelope);
        delivery.span = self.traced(&delivery);
        async {
            faults::reached(Point::Consumed);
            // Held to the end, when nothing of the message is left.
            let share = tokio::select! {
                biased;
                share = self.budget.share(lane, delivery.body.len()) => Some(share),
                () = self.stop.cancelled() => None,
                () = self.pauses.until_paused_by_operator(lane) => None,
            };
            if share.is_none() || self.is_paused(lane) {
                // The daemon stops, or its consumer is being cancelled.
                return self.settle(delivery, Settlement::HandBack.into(), None).await;
            }
            // What is rare is boxed, here and below: a task is as large as its largest path, and every one would be moved.
            let suspicion = Box::pin(self.suspicion(&delivery)).await;
            // Also what a row explains now: it may have been counted when none did.
            let is_suspect = delivery.envelope.redelivered || delivery.envelope.crashes > 0;
            let carried = self.carry_under(&delivery, suspicion).await;
            let is_counted = is_suspect || carried.is_counted;
            let counted = (is_counted && carried.settlement.is_progress()).then(|| delivery.crash_key());
            Box::pin(self.settle(delivery, carried, counted)).await;
        }
        .instrument(span)
        .await;
    }

    async fn carry_under(&self, delivery: &Delivery, suspicion: Suspicion) -> Carried {
        match suspicion {
            Suspicion::None => {}
            Suspicion::Alone => {
                if let Err(words) = Box::pin(self.rehearse(delivery)).await {
                    return Box::pin(self.crashed(delivery, words)).await.into();
                }
            }
            Suspicion::Poison(words) => return Box::pin(self.park(delivery, words)).await.into(),
        }
        // The stages see a reference, so that a panic in one of them cannot swallow the delivery.
        match AssertUnwindSafe(self.process(delivery)).catch_unwind().await {
            Ok(Carried { settlement: Settlement::Crashed(words), afterwards, is_counted }) => {
                Carried { settlement: Box::pin(self.crashed(delivery, words)).await, afterwards, is_counted }
            }
            Ok(carried) => carried,
            Err(panic) => Box::pin(self.crashed(delivery, words_of(panic.as_ref()))).await.into(),
        }
    }

    /// The whole way, with the database or, in the fast lane, without it.
    async fn process(&self, delivery: &Delivery) -> Carried {
        let lane = delivery.envelope.lane;
        let mut went = Err(Halt::Away);
        if self.store.is_up() {
            went = self.process_with_store(delivery).await;
        }
        if matches!(went, Err(Halt::Away)) && lane == Lane::Fast {
            went = Box::pin(self.process_without_store(delivery)).await;
        }
        match went {
            Ok(carried) => carried,
            Err(Halt::Refused(why)) => {
                Settlement::unreadable(Reason::Malformed, format!("cannot be recorded: {why}")).into()
            }
            // A mail of the fast lane that needs the database all the same waits where it is in nobody's way.
            Err(Halt::Away) if lane == Lane::Fast => Settlement::for_store(&delivery.envelope).into(),
            // The other lanes are paused, and hold nothing.
            Err(Halt::Away | Halt::Stopped) => Settlement::HandBack.into(),
        }
    }

    async fn process_with_store(&self, delivery: &Delivery) -> Result<Carried, Halt> {
        let envelope = &delivery.envelope;
        let Decoded { mut request, published_at, .. } = match self.decode(delivery).await {
            Ok(decoded) => decoded,
            Err(settlement) => return Ok(settlement.into()),
        };
        if envelope.lane == Lane::Fast && envelope.generation == 0 {
            if self.memory.is_sending(request.id) {
                // This daemon has it on the wire without the database, and goes on so to its end.
                return Err(Halt::Away);
            }
            if envelope.may_be_known() || self.memory.knows_request(request.id) {
                // This daemon, or another one, may have sent it without the database.
                Box::pin(self.catch_up()).await?;
            }
            // From here on its rows decide.
            self.memory.forget(request.id);
        }
        let step = delivery.span.child("render");
        let rendering = self.render(envelope, &request, published_at).await?;
        rendering.tell(&step);
        drop(step);
        faults::reached_by(Point::Rendered, request.id);
        self.metrics.accepted(envelope.lane, rendering.label());
        // Held to the end, as the message's own share is. What is not fetched yet needs no place on a connection.
        let step = request.has_references().then(|| delivery.span.child("fetch"));
        let Fetched { missing, share: _share } = match request.has_references() {
            true => Box::pin(self.fetch(delivery, &mut request, &rendering, Archive::Asked)).await?,
            false => Fetched::default(),
        };
        drop(step);
        self.admit_and_deliver(delivery, &request, published_at, &rendering, missing).await
    }

    /// Brings the audit up to date with what the fast lane sent without a database.
    async fn catch_up(&self) -> Result<(), Halt> {
        let written = tokio::select! {
            written = tokio::time::timeout(CATCH_UP_MAX, self.journal.write_all()) => written,
            () = self.stop.cancelled() => return Err(Halt::Stopped),
        };
        // Somebody writes a long one. Without the rows this delivery only waits: whoever may have it already is asked for later.
        let Ok(written) = written else { return Err(Halt::Away) };
        match written {
            Ok(_) => Ok(()),
            Err(JournalError::Store(error)) => {
                if error.is_away() {
                    self.store.note_away(&error);
                }
                Err(Halt::Away)
            }
            // Whatever is in it, nobody else can read it now either; the rows that are there decide.
            Err(JournalError::Broker(error)) => {
                tracing::warn!(%error, "cannot look into the fast lane's journal");
                Ok(())
            }
        }
    }

    /// A request that can be carried out in this lane, or how it ends here.
    async fn decode(&self, delivery: &Delivery) -> Result<Decoded, Settlement> {
        let envelope = &delivery.envelope;
        let step = delivery.span.child("decode");
        let decoded = {
            let _desk = self.quarantine.desk().await;
            decode::decode(envelope, &delivery.body, &self.rules, Utc::now())
        };
        let decoded = decoded.map_err(|error| {
            step.fail(Reason::Malformed.name());
            Settlement::unreadable(Reason::Malformed, error.to_string())
        })?;
        drop(step);
        let request = &decoded.request;
        traced::decoded(&delivery.span, request);
        faults::reached_by(Point::Decoded, request.id);
        let span = tracing::Span::current();
        // At once: each further record is a rewriting of all fields.
        tracing::record_all!(span, request.id = %request.id, template = request.template_key.as_str());
        if decoded.demoted && envelope.copy_no == 0 {
            tracing::warn!(source = request.source, "this source may not use P0 (EMAIL_P0_SOURCES): sent as P1");
        }
        if self.is_too_old(decoded.published_at) {
            let days = self.rules.audit_retention.as_secs() / 86_400;
            let error =
                format!("published more than {days} days ago (EMAIL_AUDIT_RETENTION_DAYS): it may have been sent");
            return Err(Settlement::unreadable(Reason::TooOld, error).about(request));
        }
        // The body's priority wins over the routing key, in both directions.
        if request.priority.lane() != envelope.lane {
            return Err(Settlement::Reroute(request.priority.lane()));
        }
        if envelope.replayed_at.is_some() && envelope.copy_no == 0 && !envelope.redelivered {
            self.metrics.replayed(envelope.lane);
        }
        Ok(decoded)
    }

    async fn admit_and_deliver(
        &self,
        delivery: &Delivery,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
        rendering: &Rendering,
        mut missing: Option<Missing>,
    ) -> Result<Carried, Halt> {
        let earlier = Box::pin(self.earlier_recipients(delivery, request, rendering)).await?;
        let has_files = !request.attachments.is_empty() && may_have_words(rendering, delivery);
        if has_files && missing.is_none() {
            missing = Box::pin(self.keep_attachments(delivery.envelope.lane, request)).await?;
        }
        let message = Message::new(self, delivery, request, published_at, rendering, earlier);
        let message = message.with_files(has_files, missing);
        if message.missing().is_some() {
            return Box::pin(self.put_off(&message)).await;
        }
        let (standings, mut place) = match self.admit_all(&message).await? {
            Ok(admitted) => admitted,
            Err(settlement) => return Ok(settlement.into()),
        };
        // The first recipient that could be claimed was, for there was a place; the others go their own way beside it. If
        // that one needed none after all, another takes the place over: a request that held an idle place while it waits
        // for a second one could stop its lane.
        let first = standings
            .iter()
            .position(|s| matches!(s, Standing::Claimed(_)))
            .or_else(|| standings.iter().position(|s| matches!(s, Standing::Ready)));
        if first.is_none() {
            drop(place.take());
        }
        let journeys = standings.into_iter().enumerate().map(|(index, standing)| {
            let place = if Some(index) == first { place.take() } else { None };
            Box::pin(self.one_recipient(&message, index, standing, place))
        });
        let mut journeys: Vec<_> = journeys.collect();
        let fates = match (journeys.pop(), journeys.is_empty()) {
            (Some(only), true) => vec![only.await],
            (last, _) => {
                journeys.extend(last);
                stream::iter(journeys).buffered(recipients_at_once(message.bytes(delivery.body.len()))).collect().await
            }
        };
        Ok(message.carried(&fates))
    }

    async fn one_recipient(
        &self,
        message: &Message<'_>,
        index: usize,
        standing: Standing,
        place: Option<crate::smtp::Place>,
    ) -> Fate {
        if !message.is_pending(index) {
            return self.fate_of(message, index, standing);
        }
        let (standing, place) = match standing {
            // It became due after its attachments would have been fetched.
            Standing::Ready if message.request.has_references() => {
                return Fate::Wait(Duration::ZERO, Tries::default());
            }
            Standing::Ready => match Box::pin(self.admit_one(message, index, place)).await {
                Ok(admitted) => admitted,
                Err(fate) => return fate,
            },
            other => (other, place),
        };
        match (standing, place) {
            (Standing::Claimed(claim), Some(place)) => {
                message.note_crashes(claim.crashes);
                self.deliver(message, index, claim, place).await
            }
            (standing, _) => self.fate_of(message, index, standing),
        }
    }

    /// What becomes of a recipient that is not sent to now.
    fn fate_of(&self, message: &Message<'_>, index: usize, standing: Standing) -> Fate {
        match message.left(index) {
            Left::Pending(_) => {}
            // It failed without the database, and its row does not say so yet.
            Left::Owed(tries) if matches!(standing, Standing::Busy(..)) => return Fate::Owed(tries),
            Left::Owed(_) => {}
            // It got its mail, whatever its row says so far.
            Left::Over => return Fate::Duplicate,
        }
        match standing {
            // A claim is only asked for with a place in hand; whatever else this is, it is looked at again later.
            Standing::Claimed(_) | Standing::Ready => Fate::Wait(Duration::ZERO, Tries::default()),
            Standing::NotDue(due_in, attempts, deferrals) => Fate::Wait(due_in, Tries { attempts, deferrals }),
            Standing::Postponed { due_in, is_deferred, attempts, deferrals } => {
                if is_deferred {
                    self.metrics.over_cap(message.lane(), message.rendering.label(), "deferred");
                }
                Fate::Wait(due_in, Tries { attempts, deferrals })
            }
            Standing::Busy(attempts, deferrals) => Fate::Busy(Tries { attempts, deferrals }),
            Standing::Stopped(status) => {
                self.metrics.stopped(message.lane(), message.rendering.label(), status);
                if status == Status::RateLimited {
                    self.metrics.over_cap(message.lane(), message.rendering.label(), "dropped");
                }
                Fate::Over(status)
            }
            Standing::Settled(_) => Fate::Duplicate,
            Standing::Failed { reason, error, attempts } => {
                Fate::Dead { recipient: message.recipient(index).shown().to_owned(), reason, error, attempts }
            }
        }
    }

    /// A stage panicked: the message waits a little and is tried again alone, and is parked when it does so for the third time.
    async fn crashed(&self, delivery: &Delivery, words: String) -> Settlement {
        tracing::error!(panic = words, "a stage panicked on this message");
        let crashes = delivery.envelope.crashes + 1;
        if crashes >= CRASHES_MAX {
            self.park(delivery, format!("a stage panicked {crashes} times: {words}")).await
        } else {
            Settlement::AfterCrash { crashes }
        }
    }

    /// Whether this lane takes nothing at the moment. The store is asked itself: it knows first.
    fn is_paused(&self, lane: Lane) -> bool {
        self.pauses.is_paused(lane) || (lane != Lane::Fast && !self.store.is_up())
    }

    fn is_too_old(&self, published_at: DateTime<Utc>) -> bool {
        let age = (Utc::now() - published_at).to_std().unwrap_or_default();
        age > self.rules.audit_retention
    }
}

/// The words of a panic.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}
