//! What a case plays on: a virtual host, a database and a relay of its own, proxies before broker and database, the
//! daemons, the load, and everything that is noted for the account.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postrider::email::Phase;
use uuid::Uuid;

use crate::{
    audit,
    crew::Crew,
    evidence,
    ledger::{self, Cut, Expected, Facts, Fault, Violation},
    load::{self, Draft, Load, Mix},
    random::Random,
    report::Report,
    support::{
        daemon::Variables,
        installation::Installation,
        proxy::Proxy,
        relay::{Act, Offer, Relay, Rule},
    },
    transcript::{self, Clock, now_ms},
};

/// Once nothing disturbs any more, everything is over within this time, or it counts as stuck.
pub const STUCK_MAX: Duration = Duration::from_secs(90);
/// Rules that every stage's relay has.
pub const USUAL_RULES: usize = 2;
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks in a row at which the queues must be empty: longer than the shortest delay.
const EMPTY_LOOKS: usize = 5;

/// How a case is to be played.
#[derive(Debug, Clone)]
pub struct Run {
    pub name: String,
    pub proves: &'static str,
    pub seed: u64,
    /// Requests to publish.
    pub requests: usize,
    /// All of it, or every step once.
    pub full: bool,
}

impl Run {
    /// The one in the full form, the other in the short.
    pub fn either<T>(&self, full: T, short: T) -> T {
        if self.full { full } else { short }
    }

    /// Tells whoever watches.
    pub fn say(&self, words: &str) {
        eprintln!("  {:<24} {words}", self.name);
    }
}

/// What is special about a case's stage.
pub struct Setup {
    pub offer: Offer,
    pub settings: Vec<(&'static str, String)>,
    pub mix: Mix,
    /// How long the relay thinks about each mail: the longer, the more are on the wire when something goes wrong.
    pub thinks: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let (offer, mix) = (Offer::default(), Mix::default());
        Self { offer, settings: Vec::new(), mix, thinks: Duration::from_millis(100) }
    }
}

impl Setup {
    /// Another setting for the daemons.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }
}

/// The stage of one case. What is dropped first is what needs the others.
pub struct Stage {
    pub run: Run,
    pub random: Random,
    pub crew: Crew,
    pub load: Load,
    /// Before the broker.
    pub amqp: Proxy,
    /// Before the database.
    pub sql: Proxy,
    pub post: Installation,
    /// What the account goes by, besides what is asked for in the end.
    pub facts: Facts,
    /// Faults that the case itself has seen.
    pub found: Vec<Violation>,
    clock: Clock,
    began: Instant,
    /// When a fault was over, and mail should flow again.
    mended_ms: Vec<i64>,
}

impl Stage {
    /// With queues and without a daemon; nothing is published yet.
    pub async fn set(run: Run, setup: Setup) -> Self {
        let drafts = load::requests(run.requests, setup.mix, &mut Random::new(run.seed, &run.name));
        Self::set_with(run, setup, drafts).await
    }

    /// The same with requests of one's own.
    pub async fn set_with(run: Run, setup: Setup, drafts: Vec<Draft>) -> Self {
        let relay = Relay::with(setup.offer).await;
        relay.script(
            Rule::at(Phase::Rcpt, Act::reply("451 4.7.1 greylisted, come again"))
                .whose_address_begins("late-")
                .for_each(1),
        );
        relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).whose_address_begins("gone-"));
        if !setup.thinks.is_zero() {
            relay.script(Rule::at(Phase::FinalDot, Act::Delay(setup.thinks)));
        }
        // As in the other tests: whoever wants to know more asks for it. Where it listens is known from the log.
        let log = std::env::var("TEST_LOG").unwrap_or_else(|_| "warn,postrider::app=info".to_owned());
        let usual = [
            ("EMAIL_LEASE_SECONDS", "2"),
            ("SMTP_TIMEOUT_SECONDS", "10"),
            ("SMTP_DOT_TIMEOUT_SECONDS", "20"),
            ("SMTP_CONNECTIONS_FAST", "2"),
            ("SMTP_CONNECTIONS_STANDARD", "3"),
            ("SMTP_CONNECTIONS_BULK", "2"),
            ("EMAIL_RATE_LIMIT_MARKETING", "unlimited"),
            ("SHUTDOWN_GRACE_SECONDS", "20"),
            ("LOG_LEVEL", &log),
        ];
        let mut post = Installation::prepare_on(relay, &usual).await;
        for (name, value) in setup.settings {
            post.variables.insert(name.to_owned(), value);
        }
        let patience: i64 = post.variables["SMTP_DOT_TIMEOUT_SECONDS"].parse().expect("a number");
        let amqp = Proxy::start(&post.variables["AMQP_URL"]).await;
        let sql = Proxy::start(&post.variables["DATABASE_URL"]).await;
        let load = Load::prepare(post.broker.admin_url(), drafts);
        post.variables.insert("AMQP_URL".to_owned(), amqp.url(&post.variables["AMQP_URL"]));
        post.variables.insert("DATABASE_URL".to_owned(), sql.url(&post.variables["DATABASE_URL"]));
        post.declare_queues().await;
        let facts = Facts { patience_ms: patience * 1000, ..Facts::default() };
        let random = Random::new(run.seed.wrapping_add(1), &run.name);
        Self {
            random,
            run,
            crew: Crew::default(),
            load,
            amqp,
            sql,
            post,
            facts,
            found: Vec::new(),
            clock: Clock::start(),
            began: Instant::now(),
            mended_ms: Vec::new(),
        }
    }

    /// Starts a daemon with these settings besides the usual ones.
    pub fn start_daemon(&mut self, more: &[(&str, &str)]) -> usize {
        let mut variables: Variables = self.post.variables.clone();
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.crew.start(&variables)
    }

    /// Notes what the database knew right after a cut. `excuses`: whether it can keep an outcome from the database.
    pub async fn note_cut(&mut self, excuses: bool) {
        let at_ms = now_ms();
        let rows = audit::without_outcome(&self.post.database.pool).await;
        self.facts.cuts.push(Cut { at_ms, until_ms: at_ms, excuses, rows });
    }

    /// Notes that a line that hung since the last cut lets go of what is on it.
    pub fn note_let_go(&mut self) {
        if let Some(cut) = self.facts.cuts.last_mut() {
            cut.until_ms = now_ms();
        }
    }

    /// Looks whether a daemon has left a transaction open: none of theirs takes seconds.
    pub async fn note_left_open(&mut self) {
        let open = audit::left_open(&self.post.database.pool).await;
        if open > 0 {
            let words = format!("{open} connections of daemons are in a transaction that nobody ends");
            self.found.push(Violation::general(Fault::Transaction, words));
        }
    }

    /// Notes that from now on mail should flow.
    pub fn note_mended(&mut self) {
        self.mended_ms.push(now_ms());
    }

    /// Notes a kill, and what the database knew right after it.
    pub async fn note_kill(&mut self) {
        self.note_mended();
        self.note_cut(true).await;
    }

    /// Waits until this is so. False: it takes too long, which is noted.
    pub async fn until(&mut self, what: &str, mut is_so: impl AsyncFnMut(&Self) -> bool) -> bool {
        let limit = Instant::now() + STUCK_MAX;
        while Instant::now() < limit {
            if is_so(self).await {
                return true;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.found.push(Violation::general(Fault::Plan, format!("waited in vain for: {what}")));
        false
    }

    /// Whether all that was published so far is over.
    pub async fn is_over_so_far(&self) -> bool {
        let ids: Vec<Uuid> = self.load.confirmed().iter().map(|request| request.id).collect();
        audit::open(&self.post.database.pool, &ids).await.is_nothing()
    }

    /// Waits until all that was published so far is over.
    pub async fn until_over(&mut self) -> bool {
        let ids: Vec<Uuid> = self.load.confirmed().iter().map(|request| request.id).collect();
        let limit = Instant::now() + STUCK_MAX;
        let mut open = audit::open(&self.post.database.pool, &ids).await;
        while !open.is_nothing() && Instant::now() < limit {
            tokio::time::sleep(PAUSE).await;
            open = audit::open(&self.post.database.pool, &ids).await;
        }
        if !open.is_nothing() {
            self.found.push(Violation::general(Fault::Stuck, format!("after {} s: {open:?}", STUCK_MAX.as_secs())));
        }
        open.is_nothing()
    }

    /// Lets everything come to its end, stops the daemons and draws up the account.
    pub async fn conclude(mut self) -> Report {
        self.load.allow_all();
        self.until("everything is published", async |stage| stage.load.is_done()).await;
        let is_over = self.until_over().await;
        self.post.broker.reconnect().await;
        // What a daemon has in its hands is in no queue: a copy that comes back in a moment must not be taken for a leftover.
        let mut looks = 0;
        let empty = async |stage: &Self| {
            looks = if stage.post.broker.not_empty().await.is_empty() { looks + 1 } else { 0 };
            looks >= EMPTY_LOOKS
        };
        if is_over {
            self.until("the queues are empty", empty).await;
        }
        self.note_left_open().await;
        self.crew.stop().await;
        // What a daemon held without acknowledging it is back in its queue now, and one that had been cut off may have
        // published a copy in its last moment. Another daemon must find that nothing is left to do about either.
        if is_over && !self.post.broker.not_empty().await.is_empty() {
            let variables = self.post.variables.clone();
            self.crew.start(&variables);
            self.until("what was handed back is settled", async |stage| stage.post.broker.not_empty().await.is_empty())
                .await;
            self.crew.stop().await;
        }
        let left = self.post.broker.not_empty().await;
        self.facts.queued = left.values().map(|&ready| ready as usize).sum();
        if !left.is_empty() {
            self.found.push(Violation::general(Fault::Queue, format!("left in queues: {left:?}")));
        }
        let faults = std::mem::take(&mut self.crew.faults);
        self.found.extend(faults.into_iter().map(|words| Violation::general(Fault::Daemon, words)));
        self.gather().await;
        let facts = Arc::new(std::mem::take(&mut self.facts));
        let (account, mut found) = ledger::judge(&facts);
        found.append(&mut self.found);
        let mut evidence = evidence::of(&found, &self.post, &facts).await;
        if !found.is_empty() {
            evidence.extend(self.crew.logs.iter().map(|log| evidence::log(log, &found)));
        }
        Report {
            account,
            found,
            evidence,
            kills: self.crew.kills,
            recoveries_ms: recoveries(&self.mended_ms, &facts),
            seconds: self.began.elapsed().as_secs(),
            ..Report::of(&self.run)
        }
    }

    async fn gather(&mut self) {
        let confirmed = self.load.confirmed();
        self.facts.requests = confirmed.len();
        self.facts.expected = confirmed
            .iter()
            .flat_map(|request| {
                request.recipients.iter().map(|recipient| Expected {
                    request: request.id,
                    recipient: recipient.clone(),
                    holds: request.holds,
                    fast: request.fast,
                    refused: recipient.starts_with("gone-"),
                    published_ms: request.published_ms,
                })
            })
            .collect();
        let clock = self.clock;
        let read = |log: &_| (transcript::sends(log, clock), transcript::past_data(log, clock));
        (self.facts.sends, self.facts.past_data) = tokio::task::block_in_place(|| self.post.relay.look(read));
        self.facts.rows = audit::rows(&self.post.database.pool).await;
        self.facts.letters = audit::letters(&self.post.database.pool).await;
    }
}

/// From each moment when mail should flow again to the first mail that did, if that came before the next fault.
fn recoveries(mended_ms: &[i64], facts: &Facts) -> Vec<i64> {
    let mut begun: Vec<(i64, i64)> =
        facts.sends.iter().filter(|send| send.accepted).map(|send| (send.begun_ms, send.dot_ms)).collect();
    begun.sort_unstable();
    let mut found: Vec<i64> = mended_ms
        .iter()
        .enumerate()
        .filter_map(|(index, &from)| {
            let next = mended_ms.get(index + 1).copied().unwrap_or(i64::MAX);
            let first = begun.iter().find(|(at, _)| *at >= from)?;
            (first.1 < next).then_some(first.1 - from)
        })
        .collect();
    found.sort_unstable();
    found
}
