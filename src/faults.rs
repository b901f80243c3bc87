//! Faults on command, for the proof that the delivery contract holds: a test build can be told to die at a point of a
//! message's path, to take its time there, or to leave out the commit of its claims.
//!
//! ```text
//! POSTRIDER_DIE_AT=claimed            dies when a message comes there
//! POSTRIDER_DIE_AT=claimed#17         dies when the 17th does
//! POSTRIDER_DIE_AT=rendered@<uuid>    dies whenever that request does (points that know their request)
//! POSTRIDER_PANIC_AT=rendered@<uuid>  the same points, but a panic instead of a death
//! POSTRIDER_SLOW_AT=outcome_due=300,acked=50
//!                                     so many milliseconds pass at each of these points, for every message: a test that
//!                                     looks too early, and mostly gets away with it, does not then
//! POSTRIDER_LEAVE_OUT=claim_commit    claims are answered and rolled back: the contract is broken, and must be seen to be
//! ```
//!
//! Invariant: a build without debug assertions, such as every release, reads none of this and holds none of it.

use uuid::Uuid;

/// A boundary on the path of one message, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A delivery was taken from its queue; nothing is known of it.
    Consumed,
    /// Its bytes are a request.
    Decoded,
    /// It has subject and bodies.
    Rendered,
    /// The claim is committed; no byte of it has been sent.
    Claimed,
    /// The mail is built, and about to be sent.
    Send,
    /// MAIL was written.
    Mail,
    /// RCPT was written.
    Rcpt,
    /// DATA was written; with PIPELINING, together with MAIL and RCPT.
    Data,
    /// The first piece of the content was written, and it was not the last.
    Content,
    /// The last byte of the terminator was handed to the socket.
    FinalDot,
    /// The relay's reply to it was read.
    Replied,
    /// The outcome is about to be committed.
    OutcomeDue,
    /// The outcome is committed.
    OutcomeCommitted,
    /// A retry copy or dead letter is about to be published.
    CopyDue,
    /// The broker has confirmed it.
    CopyConfirmed,
    /// The delivery is about to be acknowledged.
    AckDue,
    /// The acknowledgement was written.
    Acked,
    /// A dead letter, or a recorded mail, is on its way again, as far as the database knows; its message has not been published.
    ReplayCommitted,
    /// The broker has confirmed that copy; the database has not heard of it.
    ReplayConfirmed,
    /// The broker has confirmed events; their rows are still in the outbox.
    EventsConfirmed,
}

impl Point {
    /// Those of a message's own path, in its order.
    pub const ALL: [Self; 17] = [
        Self::Consumed,
        Self::Decoded,
        Self::Rendered,
        Self::Claimed,
        Self::Send,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Content,
        Self::FinalDot,
        Self::Replied,
        Self::OutcomeDue,
        Self::OutcomeCommitted,
        Self::CopyDue,
        Self::CopyConfirmed,
        Self::AckDue,
        Self::Acked,
    ];

    /// Those of `postrider dead replay`.
    pub const REPLAY: [Self; 2] = [Self::ReplayCommitted, Self::ReplayConfirmed];

    /// Those of the outbox.
    pub const OUTBOX: [Self; 1] = [Self::EventsConfirmed];

    /// As `POSTRIDER_DIE_AT` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consumed => "consumed",
            Self::Decoded => "decoded",
            Self::Rendered => "rendered",
            Self::Claimed => "claimed",
            Self::Send => "send",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Content => "content",
            Self::FinalDot => "final_dot",
            Self::Replied => "replied",
            Self::OutcomeDue => "outcome_due",
            Self::OutcomeCommitted => "outcome_committed",
            Self::CopyDue => "copy_due",
            Self::CopyConfirmed => "copy_confirmed",
            Self::AckDue => "ack_due",
            Self::Acked => "acked",
            Self::ReplayCommitted => "replay_committed",
            Self::ReplayConfirmed => "replay_confirmed",
            Self::EventsConfirmed => "events_confirmed",
        }
    }
}

/// A message has come to this point.
pub(crate) fn reached(point: Point) {
    #[cfg(debug_assertions)]
    on_command::reached(point, None);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// This request has come to this point.
pub(crate) fn reached_by(point: Point, request: Uuid) {
    #[cfg(debug_assertions)]
    on_command::reached(point, Some(request));
    #[cfg(not(debug_assertions))]
    let _ = (point, request);
}

/// Whether claims are to be rolled back instead of committed.
pub(crate) fn leaves_out_claim_commit() -> bool {
    #[cfg(debug_assertions)]
    return on_command::leaves_out("claim_commit");
    #[cfg(not(debug_assertions))]
    false
}

#[cfg(debug_assertions)]
mod on_command {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::runtime::{Handle, RuntimeFlavor};
    use uuid::Uuid;

    use super::Point;

    struct Command {
        point: Point,
        request: Option<Uuid>,
        /// Nothing: each time.
        passages: Option<u64>,
        passed: AtomicU64,
    }

    impl Command {
        fn is_meant(&self, point: Point, request: Option<Uuid>) -> bool {
            if self.point != point || self.request.is_some() && self.request != request {
                return false;
            }
            let passed = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
            self.passages.is_none_or(|passages| passages == passed)
        }
    }

    static DIE: LazyLock<Option<Command>> = LazyLock::new(|| command("POSTRIDER_DIE_AT"));
    static PANIC: LazyLock<Option<Command>> = LazyLock::new(|| command("POSTRIDER_PANIC_AT"));

    fn command(name: &str) -> Option<Command> {
        let text = std::env::var(name).ok()?;
        let command = read(&text);
        assert!(command.is_some(), "{name}={text}: a point, and #passages or @request behind it");
        command
    }

    fn read(text: &str) -> Option<Command> {
        let (name, request, passages) = match (text.split_once('#'), text.split_once('@')) {
            (Some((name, passages)), _) => (name, None, Some(passages.parse().ok()?)),
            (None, Some((name, request))) => (name, Some(request.parse().ok()?), None),
            (None, None) => (text, None, None),
        };
        Some(Command { point: named(name)?, request, passages, passed: AtomicU64::new(0) })
    }

    fn named(name: &str) -> Option<Point> {
        every_point().find(|point| point.name() == name)
    }

    static SLOW: LazyLock<Vec<(Point, Duration)>> = LazyLock::new(|| {
        let text = std::env::var("POSTRIDER_SLOW_AT").unwrap_or_default();
        read_slow(&text)
            .unwrap_or_else(|| panic!("POSTRIDER_SLOW_AT={text}: point=milliseconds, and commas between them"))
    });

    fn read_slow(text: &str) -> Option<Vec<(Point, Duration)>> {
        let one = |part: &str| {
            let (name, ms) = part.split_once('=')?;
            Some((named(name)?, Duration::from_millis(ms.parse().ok()?)))
        };
        text.split(',').filter(|part| !part.is_empty()).map(one).collect()
    }

    /// Others go on meanwhile, unless the runtime has one thread only.
    fn take_time(point: Point) {
        let Some((_, time)) = SLOW.iter().find(|(slow, _)| *slow == point) else { return };
        let sleep = || std::thread::sleep(*time);
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sleep),
            _ => sleep(),
        }
    }

    fn every_point() -> impl Iterator<Item = Point> {
        Point::ALL.into_iter().chain(Point::REPLAY).chain(Point::OUTBOX)
    }

    pub(super) fn reached(point: Point, request: Option<Uuid>) {
        take_time(point);
        if DIE.as_ref().is_some_and(|command| command.is_meant(point, request)) {
            // What a power cut leaves behind: no destructor, no flush, no goodbye.
            let _ = kill_process(getpid(), Signal::KILL);
            std::process::abort();
        }
        assert!(
            !PANIC.as_ref().is_some_and(|command| command.is_meant(point, request)),
            "told to panic at {}",
            point.name()
        );
    }

    pub(super) fn leaves_out(what: &str) -> bool {
        static LEFT_OUT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("POSTRIDER_LEAVE_OUT").ok());
        LEFT_OUT.as_deref() == Some(what)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_point_can_be_named_alone_counted_or_for_one_request() {
            let request = Uuid::from_u128(7);
            for point in every_point() {
                let name = point.name();
                let alone = read(name).expect("a point");
                assert_eq!((alone.point, alone.request, alone.passages), (point, None, None));
                assert_eq!(read(&format!("{name}#17")).expect("counted").passages, Some(17));
                assert_eq!(read(&format!("{name}@{request}")).expect("for one").request, Some(request));
            }
            for wrong in ["", "nowhere", "claimed#", "claimed#x", "claimed@7"] {
                assert!(read(wrong).is_none(), "{wrong}");
            }
        }

        #[test]
        fn several_points_can_be_slow() {
            let slow = read_slow("outcome_due=300,acked=50").expect("two of them");
            let (first, second) = (Duration::from_millis(300), Duration::from_millis(50));
            assert_eq!(slow, [(Point::OutcomeDue, first), (Point::Acked, second)]);
            assert_eq!(read_slow(""), Some(Vec::new()));
            for wrong in ["nowhere=3", "acked", "acked=", "acked=x", "acked=-1"] {
                assert_eq!(read_slow(wrong), None, "{wrong}");
            }
        }
    }
}
