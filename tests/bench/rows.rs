//! The rows: their names, what each measures, and what it is compared with.

use std::fmt;

use clap::ValueEnum;

use super::{
    args::Args,
    relay::ROUND_TRIP,
    requests::Content,
    services::Services,
    work::{Audit, Queue, Relay, Which, Work},
};

/// The yardstick is so much faster that as many mails would be over before a clock that ticks a hundred times a second
/// could tell what they cost.
const YARDSTICK_TIMES: u64 = 4;
/// A tenth of what the listener has to take.
const EVENTS_BESIDE: u32 = 100;
const PDF: Content = Content::Document(50_000);
const LARGE: Content = Content::Document(1_000_000);

/// What can be chosen with --only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Name {
    /// Mails of 2 kB over quorum queues, beside smtp-source -d
    Small,
    /// The same over classic queues
    Classic,
    /// The same over quorum queues of RabbitMQ 4.0
    Rabbitmq4,
    /// The same over classic queues of RabbitMQ 4.0
    Rabbitmq4Classic,
    /// The same by two daemons that share the connections
    TwoDaemons,
    /// The same with a subscriber to all events
    Subscriber,
    /// The same with a hundred signed events of SES a second beside the mails
    BesideFeedback,
    /// The same with a relay that asks for STARTTLS
    Starttls,
    /// The same with many millions of rows in the audit already
    Growth,
    /// Mails of 2 kB over one connection, beside smtp-source -d -s 1
    OneConnection,
    /// A relay 20 ms away that offers PIPELINING
    Distant,
    /// A relay 20 ms away that does not
    DistantPlain,
    /// Mails with a PDF of 50 kB
    Pdf,
    /// Mails with an attachment of 1 MB
    Attachment,
    /// Latency of incidents, idle and with the other lanes full; memory meanwhile
    P0,
    /// Memory with attachments of 10 MB queued in each lane
    LargeMemory,
    /// Signed events of SES: how many a second are taken and applied
    Feedback,
    /// From start to the first mail
    Start,
    /// CPU of a daemon that has nothing to do
    Idle,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Who sends.
#[derive(Debug, Clone)]
pub(crate) enum Sender {
    /// `smtp-source -d`, with mails as large as the daemon's.
    Source { content: Content, connections: u16, mails: u64 },
    /// Daemons.
    Daemons(Work),
}

/// What a row is divided by.
#[derive(Debug, Clone)]
pub(crate) enum Yardstick {
    /// A row of the same contest, by its key.
    Row(&'static str),
    /// So many mails a second: what distance alone would allow.
    Ideal(f64),
}

/// A row before it is measured.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Unlike every other's.
    pub(crate) key: &'static str,
    /// For people.
    pub(crate) title: String,
    pub(crate) sender: Sender,
    pub(crate) yardstick: Option<Yardstick>,
}

/// What is left out, and why.
#[derive(Debug, Clone)]
pub(crate) struct Absent {
    pub(crate) row: Name,
    pub(crate) why: String,
}

/// Whether the command line asks for this row.
pub(crate) fn is_wanted(args: &Args, row: Name) -> bool {
    args.only.is_empty() || args.only.contains(&row)
}

/// Rows whose runs are made in turn, so that what disturbs the machine disturbs all of them.
pub(crate) type Contest = Vec<Spec>;

/// The contests that are asked for. `filled` is the database of the growth row, if that is to be measured.
pub(crate) fn contests(args: &Args, services: &Services, filled: Option<String>) -> (Vec<Contest>, Vec<Absent>) {
    let mut absent = Vec::new();
    let contests = vec![
        small(args, services, filled, &mut absent),
        one_connection(args),
        distant(args),
        large(args, Name::Pdf, "source-pdf", "PDF of 50 kB", PDF, 10),
        large(args, Name::Attachment, "source-attachment", "attachment of 1 MB", LARGE, 100),
    ];
    (contests.into_iter().filter(|contest| !contest.is_empty()).collect(), absent)
}

fn source(args: &Args, key: &'static str, title: &str, content: Content, connections: u16, mails: u64) -> Spec {
    let plural = if connections == 1 { "" } else { "s" };
    Spec {
        key,
        title: format!("smtp-source -d, {connections} connection{plural}{title}"),
        sender: Sender::Source { content, connections, mails: (mails * YARDSTICK_TIMES).max(args.runs) },
        yardstick: None,
    }
}

fn small(args: &Args, services: &Services, filled: Option<String>, absent: &mut Vec<Absent>) -> Contest {
    let version = |which| services.broker(which).map_or("", |broker| broker.version.as_str());
    let (first, second) = (version(Which::First), version(Which::Second));
    let usual = Work::usual(args);
    let spec = |key, title: String, work: Work, yardstick| Spec {
        key,
        title,
        sender: Sender::Daemons(work),
        yardstick: Some(Yardstick::Row(yardstick)),
    };
    let mut rows = Vec::new();
    if is_wanted(args, Name::Classic) {
        let work = Work { queue: Queue::Classic, ..usual.clone() };
        rows.push(spec("classic", format!("classic queues, RabbitMQ {first}"), work, "source"));
    }
    for (row, key, queue) in
        [(Name::Rabbitmq4, "rabbitmq4", Queue::Quorum), (Name::Rabbitmq4Classic, "rabbitmq4-classic", Queue::Classic)]
    {
        if !is_wanted(args, row) {
            continue;
        }
        if let Some(why) = services.obstacle(Which::Second) {
            absent.push(Absent { row, why: why.to_owned() });
            continue;
        }
        let work = Work { broker: Which::Second, queue, ..usual.clone() };
        rows.push(spec(key, format!("{} queues, RabbitMQ {second}", queue.name()), work, "source"));
    }
    if is_wanted(args, Name::TwoDaemons) {
        let work = Work { daemons: 2, ..usual.clone() };
        rows.push(spec("two-daemons", "two daemons, half the connections each".to_owned(), work, "source"));
    }
    if is_wanted(args, Name::Subscriber) {
        let work = Work { subscriber: true, ..usual.clone() };
        rows.push(spec("subscriber", "a subscriber to all events".to_owned(), work, "source"));
    }
    if is_wanted(args, Name::Starttls) {
        let work = Work { relay: Relay::StartTls, ..usual.clone() };
        rows.push(spec("starttls", "STARTTLS, beside the plain row".to_owned(), work, "small"));
    }
    if is_wanted(args, Name::BesideFeedback) {
        let work = Work { events_per_second: Some(EVENTS_BESIDE), ..usual.clone() };
        let title = format!("{EVENTS_BESIDE} signed events of SES a second meanwhile, beside none");
        rows.push(spec("beside-feedback", title, work, "small"));
    }
    if let Some(database) = filled {
        let work = Work { audit: Audit::Filled(database), ..usual.clone() };
        let title = format!("{} rows in the audit already, beside none", with_spaces(args.audit_rows));
        rows.push(spec("growth", title, work, "small"));
    }
    if !rows.is_empty() || is_wanted(args, Name::Small) {
        rows.insert(0, spec("small", format!("quorum queues, RabbitMQ {first}"), usual, "source"));
        rows.insert(0, source(args, "source", "", Content::Notice, args.connections, args.mails));
    }
    rows
}

fn one_connection(args: &Args) -> Contest {
    if !is_wanted(args, Name::OneConnection) {
        return Vec::new();
    }
    let mails = part_of(args, 4);
    vec![
        source(args, "source-one", "", Content::Notice, 1, mails),
        Spec {
            key: "one-connection",
            title: "one connection".to_owned(),
            sender: Sender::Daemons(Work { mails, connections: 1, ..Work::usual(args) }),
            yardstick: Some(Yardstick::Row("source-one")),
        },
    ]
}

fn distant(args: &Args) -> Contest {
    let a_second = f64::from(args.connections) / ROUND_TRIP.as_secs_f64();
    let spec = |key, title: &str, pipelining, round_trips: u64| Spec {
        key,
        title: format!("relay {} ms away, {title}", ROUND_TRIP.as_millis()),
        sender: Sender::Daemons(Work {
            mails: part_of(args, 4 * round_trips),
            relay: Relay::Distant { pipelining },
            ..Work::usual(args)
        }),
        yardstick: Some(Yardstick::Ideal(a_second / round_trips as f64)),
    };
    let mut rows = Vec::new();
    if is_wanted(args, Name::Distant) {
        rows.push(spec("distant", "PIPELINING offered", true, 1));
    }
    if is_wanted(args, Name::DistantPlain) {
        rows.push(spec("distant-plain", "PIPELINING not offered", false, 4));
    }
    rows
}

fn large(args: &Args, row: Name, key: &'static str, title: &str, content: Content, part: u64) -> Contest {
    if !is_wanted(args, row) {
        return Vec::new();
    }
    let mails = part_of(args, part);
    let own = if row == Name::Pdf { "pdf" } else { "attachment" };
    vec![
        source(args, key, &format!(", as large as {title}"), content, args.connections, mails),
        Spec {
            key: own,
            title: title.to_owned(),
            sender: Sender::Daemons(Work { mails, content, ..Work::usual(args) }),
            yardstick: Some(Yardstick::Row(key)),
        },
    ]
}

/// Fewer mails, for a row that is slow; still several on each connection.
fn part_of(args: &Args, part: u64) -> u64 {
    (args.mails / part).max(u64::from(args.connections) * 5)
}

/// 10 000 000, for people.
pub(crate) fn with_spaces(number: u64) -> String {
    let digits = number.to_string();
    let mut spaced = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}
