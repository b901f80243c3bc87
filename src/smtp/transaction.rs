//! One mail to one recipient: MAIL, RCPT, DATA, content, and the reply to the final dot.
//!
//! Invariant: a mail goes ahead only while it still may; one that may not any more after its 354 ends with the connection,
//! without a dot.
//! Invariant: one recipient a transaction, so that a refusal concerns nobody else and the reply to the dot is this recipient's.
//! Where commands may be sent ahead, the next mail's envelope follows the final dot in the same flight (RFC 2920 §3.1), so that
//! a mail costs one round trip.
//!
//! Invariant: the step is `FinalDot` only once the last byte of the terminator was handed to the socket. Before that the
//! relay cannot have accepted the mail; after it nobody can say that it has not.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    connection::Connection,
    content::ContentEncoder,
    line::{Done, Job, Line},
    reply::RawReply,
    steps::Steps,
};
use crate::{
    email::{EmailAddress, LinkFault, Phase, Reply, SendReport},
    faults::{self, Point},
};

/// Content is written in pieces of this size; most mails fit into one, terminator and the next envelope included.
const PIECE_BYTES: usize = 256 * 1024;
/// Room in a piece for the terminator and the next mail's envelope.
const ENVELOPE_BYTES: usize = 1024;

/// Positive replies to MAIL, RCPT and the final dot.
const DONE: Range<u16> = 200..300;
/// The only go-ahead for content.
const GO_AHEAD: Range<u16> = 354..355;

/// Why a mail must not go any more, if so.
type Obstacle = dyn Fn() -> Option<&'static str> + Send + Sync;

/// A mail, ready to go.
#[derive(Clone)]
pub struct OutgoingMail {
    from: EmailAddress,
    to: EmailAddress,
    message: Bytes,
    /// Above 127 there is nothing in it.
    is_ascii: bool,
    needs_smtputf8: bool,
    obstacle: Option<Arc<Obstacle>>,
}

impl fmt::Debug for OutgoingMail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingMail").field("to", &self.to).field("bytes", &self.message.len()).finish_non_exhaustive()
    }
}

impl OutgoingMail {
    /// A mail under this envelope. `message`: header and body as they will be signed and seen; line ends and dots are
    /// taken care of on the way.
    pub fn new(from: EmailAddress, to: EmailAddress, message: impl Into<Bytes>) -> Self {
        let message = message.into();
        let is_ascii = message.is_ascii();
        // Not only the envelope: such an address in Reply-To makes a header that only RFC 6531 allows.
        let needs_smtputf8 =
            from.needs_smtputf8() || to.needs_smtputf8() || (!is_ascii && !head_of(&message).is_ascii());
        Self { from, to, message, is_ascii, needs_smtputf8, obstacle: None }
    }

    /// The same, to be asked before its envelope and again before its content whether something keeps it from going.
    #[must_use]
    pub fn unless(mut self, obstacle: impl Fn() -> Option<&'static str> + Send + Sync + 'static) -> Self {
        self.obstacle = Some(Arc::new(obstacle));
        self
    }

    /// The one recipient.
    #[must_use]
    pub const fn to(&self) -> &EmailAddress {
        &self.to
    }

    pub(super) fn obstacle(&self) -> Option<&'static str> {
        self.obstacle.as_ref().and_then(|obstacle| obstacle())
    }
}

/// A mail whose envelope was sent ahead, behind the final dot of the one before it.
pub(super) struct Following(Job);

/// Carries one mail, and says how that went. What state the connection is in, it knows itself.
///
/// Returns the mail that follows in the same flight, if there is one.
pub(super) async fn carry(connection: &mut Connection, line: &Line, job: Job) -> Option<Following> {
    if let Some(report) = cannot_begin(connection, &job) {
        job.finish(report, connection.mails == 0);
        return None;
    }
    connection.mails += 1;
    connection.steps = Steps::begin();
    let entered = if connection.capabilities.pipelining {
        match write_envelope(connection, &job.mail).await {
            Ok(()) => read_envelope(connection, &job.mail).await,
            Err(report) => Err(report),
        }
    } else {
        envelope_step_by_step(connection, &job.mail).await
    };
    finish(connection, line, job, entered).await
}

/// The same for a mail whose envelope is on its way.
pub(super) async fn carry_on(connection: &mut Connection, line: &Line, Following(job): Following) -> Option<Following> {
    if connection.is_spoilt() {
        job.fail();
        return None;
    }
    connection.steps = Steps::begin();
    let entered = read_envelope(connection, &job.mail).await;
    finish(connection, line, job, entered).await
}

async fn finish(
    connection: &mut Connection,
    line: &Line,
    job: Job,
    entered: Result<(), SendReport>,
) -> Option<Following> {
    let is_fresh = connection.mails == 1;
    if let Err(report) = entered {
        connection.needs_reset = true;
        tell(connection, job, report, is_fresh);
        return None;
    }
    if let Some(why) = job.obstacle() {
        // The relay waits for content. Closing is the only way to say that there is none.
        connection.spoil();
        tell(connection, job, SendReport::Withdrawn { why }, is_fresh);
        return None;
    }
    let mut following = None;
    let report = match content_and_reply(connection, line, &job.mail, &mut following).await {
        Ok(reply) => SendReport::Accepted { reply },
        Err(report) => {
            // Where a mail follows, the relay has forgotten this one by itself (RFC 5321 §4.1.1.4).
            connection.needs_reset = following.is_none();
            report
        }
    };
    tell(connection, job, report, is_fresh);
    following
}

/// Tells how it went, and how long the steps took.
fn tell(connection: &mut Connection, job: Job, report: SendReport, is_fresh: bool) {
    let steps = std::mem::replace(&mut connection.steps, Steps::none());
    job.finish_after(Done { report, is_fresh, steps: Some(steps), opening: connection.opening.take() });
}

/// Why a mail is not begun at all, if so.
fn cannot_begin(connection: &Connection, job: &Job) -> Option<SendReport> {
    if let Some(missing) = missing_capability(connection, &job.mail) {
        return Some(SendReport::NotCapable { missing });
    }
    job.obstacle().map(|why| SendReport::Withdrawn { why })
}

/// Writes the content, and the next mail's envelope behind it; returns the reply to the final dot.
async fn content_and_reply(
    connection: &mut Connection,
    line: &Line,
    mail: &OutgoingMail,
    following: &mut Option<Following>,
) -> Result<Reply, SendReport> {
    write_content(connection, line, mail, following).await?;
    faults::reached(Point::FinalDot);
    let deadline = Instant::now() + connection.dot_timeout();
    let reply = loop {
        let may_follow = following.is_none() && may_send_ahead(connection);
        tokio::select! {
            biased;
            reply = connection.read_final_reply(deadline) => break reply,
            () = line.follower_comes(), if may_follow => {}
        }
        if let Some(next) = next_to_follow(connection, line) {
            connection.mails += 1;
            // If it cannot be written, the reply that is owed may still be read.
            let _ = write_envelope(connection, &next.mail).await;
            *following = Some(Following(next));
        }
    };
    connection.steps.end(Phase::FinalDot);
    faults::reached(Point::Replied);
    judge(connection, mail, Phase::FinalDot, reply, &DONE)
}

/// Whether one more mail may go over this connection, its commands ahead.
fn may_send_ahead(connection: &Connection) -> bool {
    connection.capabilities.pipelining && !connection.is_spoilt() && connection.mails < connection.mails_max
}

/// A mail that waits, can go over this connection, and still may.
fn next_to_follow(connection: &Connection, line: &Line) -> Option<Job> {
    if !may_send_ahead(connection) {
        return None;
    }
    loop {
        let next = line.follower()?;
        match cannot_begin(connection, &next) {
            None => return Some(next),
            Some(report) => next.finish(report, false),
        }
    }
}

fn missing_capability(connection: &Connection, mail: &OutgoingMail) -> Option<String> {
    let offered = &connection.capabilities;
    if mail.needs_smtputf8 && !offered.smtputf8 {
        return Some("an address holds characters beyond ASCII and the relay does not offer SMTPUTF8".to_owned());
    }
    if !offered.eight_bit_mime && !mail.is_ascii {
        return Some("the content holds bytes above 127 and the relay does not offer 8BITMIME".to_owned());
    }
    let bytes = u64::try_from(mail.message.len()).unwrap_or(u64::MAX);
    let max = offered.size_max.filter(|max| bytes > *max)?;
    Some(format!(
        "the mail has {bytes} bytes and the relay takes {max} (SIZE): link to its files instead of attaching them"
    ))
}

/// All before the first empty line; nothing where there is none.
fn head_of(message: &[u8]) -> &[u8] {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n");
    end.map_or(&[], |end| &message[..end])
}

fn mail_command(connection: &Connection, mail: &OutgoingMail) -> String {
    let offered = &connection.capabilities;
    let mut command = format!("MAIL FROM:<{}>", mail.from.as_str());
    if offered.size {
        command.push_str(&format!(" SIZE={}", mail.message.len()));
    }
    if offered.eight_bit_mime && !mail.is_ascii {
        command.push_str(" BODY=8BITMIME");
    }
    if mail.needs_smtputf8 {
        command.push_str(" SMTPUTF8");
    }
    command.push_str("\r\n");
    command
}

fn rcpt_command(mail: &OutgoingMail) -> String {
    format!("RCPT TO:<{}>\r\n", mail.to.as_str())
}

async fn envelope_step_by_step(connection: &mut Connection, mail: &OutgoingMail) -> Result<(), SendReport> {
    if connection.needs_reset {
        write_in_turn(connection, Phase::Mail, b"RSET\r\n").await?;
        finish_reset(connection, mail).await?;
    }
    let (sender, recipient) = (mail_command(connection, mail), rcpt_command(mail));
    for (phase, command, wanted, written) in [
        (Phase::Mail, sender.as_str(), DONE, Point::Mail),
        (Phase::Rcpt, &recipient, DONE, Point::Rcpt),
        (Phase::Data, "DATA\r\n", GO_AHEAD, Point::Data),
    ] {
        write_in_turn(connection, phase, command.as_bytes()).await?;
        faults::reached(written);
        step(connection, mail, phase, &wanted).await?;
    }
    Ok(())
}

/// RSET (where the last transaction was left unfinished), MAIL, RCPT and DATA, to go in one write (RFC 2920); and how
/// many replies are owed for them.
fn envelope(connection: &Connection, mail: &OutgoingMail, out: &mut Vec<u8>) -> u32 {
    if connection.needs_reset {
        out.extend_from_slice(b"RSET\r\n");
    }
    out.extend_from_slice(mail_command(connection, mail).as_bytes());
    out.extend_from_slice(rcpt_command(mail).as_bytes());
    out.extend_from_slice(b"DATA\r\n");
    if connection.needs_reset { 4 } else { 3 }
}

async fn write_envelope(connection: &mut Connection, mail: &OutgoingMail) -> Result<(), SendReport> {
    let mut flight = Vec::with_capacity(256);
    let replies = envelope(connection, mail, &mut flight);
    write(connection, Phase::Mail, &flight, replies).await?;
    faults::reached(Point::Data);
    Ok(())
}

/// The replies to an envelope that went in one write, in order. All of them are read whatever they say, or the connection
/// is spoilt.
async fn read_envelope(connection: &mut Connection, mail: &OutgoingMail) -> Result<(), SendReport> {
    if connection.needs_reset {
        finish_reset(connection, mail).await?;
    }
    let sender = step(connection, mail, Phase::Mail, &DONE).await;
    if connection.is_spoilt() {
        return sender.map(drop);
    }
    let recipient = step(connection, mail, Phase::Rcpt, &DONE).await;
    // Nobody takes a recipient for a mail that has no sender: these were replies to something else.
    if sender.is_err() && (recipient.is_ok() || makes_no_sense(&recipient)) {
        return Err(out_of_step(connection, Phase::Rcpt));
    }
    // The first refusal is the mail's; what follows it only tells in what state the connection is.
    let Err(report) = sender.and(recipient) else {
        return step(connection, mail, Phase::Data, &GO_AHEAD).await.map(drop);
    };
    if connection.is_spoilt() {
        return Err(report);
    }
    Err(abandon(connection).await.err().unwrap_or(report))
}

/// Reads DATA's reply after the recipient was refused. A relay that gives the go-ahead all the same has no recipient, and
/// gets an empty mail to refuse (RFC 2920 §3.1); anything but that refusal closes the connection.
///
/// # Errors
/// When it is no reply to DATA: then what was taken for a refusal answered something else, too.
async fn abandon(connection: &mut Connection) -> Result<(), SendReport> {
    match connection.read_reply().await {
        Ok(reply) if reply.code >= 400 => {}
        Ok(reply) if GO_AHEAD.contains(&reply.code) => {
            let reply = match connection.write(b".\r\n", 1).await {
                Ok(()) => connection.read_reply().await,
                Err(fault) => Err(fault),
            };
            if !reply.is_ok_and(|reply| reply.code >= 400) {
                connection.spoil();
            }
        }
        Ok(_) | Err(LinkFault::BadReply) => return Err(out_of_step(connection, Phase::Data)),
        // It refused, and hung up.
        Err(_) => {}
    }
    Ok(())
}

fn makes_no_sense<T>(read: &Result<T, SendReport>) -> bool {
    matches!(read, Err(SendReport::Broken { fault: LinkFault::BadReply, .. }))
}

/// The replies do not go with the commands: none of them is believed, and no more are read.
fn out_of_step(connection: &mut Connection, phase: Phase) -> SendReport {
    connection.spoil();
    SendReport::Broken { phase, fault: LinkFault::BadReply }
}

async fn finish_reset(connection: &mut Connection, mail: &OutgoingMail) -> Result<(), SendReport> {
    let reply = connection.read_reply().await;
    match judge(connection, mail, Phase::Mail, reply, &DONE) {
        // A relay that refuses to forget the last mail says nothing about this one, and may name whom it speaks of.
        Err(SendReport::Refused { reply, .. }) => {
            connection.spoil();
            let fault = if reply.code == 421 { LinkFault::Closed } else { LinkFault::BadReply };
            Err(SendReport::Broken { phase: Phase::Mail, fault })
        }
        Err(report) => Err(report),
        Ok(_) => {
            connection.needs_reset = false;
            Ok(())
        }
    }
}

async fn write_content(
    connection: &mut Connection,
    line: &Line,
    mail: &OutgoingMail,
    following: &mut Option<Following>,
) -> Result<(), SendReport> {
    let mut encoder = ContentEncoder::new(&mail.message);
    let whole = mail.message.len() + mail.message.len() / 32 + ENVELOPE_BYTES;
    let mut piece = Vec::with_capacity(whole.min(PIECE_BYTES + ENVELOPE_BYTES));
    loop {
        piece.clear();
        let is_last = encoder.fill(&mut piece, PIECE_BYTES);
        // A reply that came before the terminator would be taken for the answer to it.
        if let Some(fault) = connection.out_of_turn().await {
            return Err(broken_off(connection, mail, fault).await);
        }
        let terminated = piece.len();
        let mut replies = u32::from(is_last);
        if is_last && let Some(next) = next_to_follow(connection, line) {
            replies += envelope(connection, &next.mail, &mut piece);
            connection.mails += 1;
            *following = Some(Following(next));
        }
        if let Err(fault) = connection.write(&piece, replies).await {
            if is_last && connection.written() >= terminated {
                // The terminator is out: what the relay has to say about it is all that counts.
                connection.steps.end(Phase::Content);
                return Ok(());
            }
            return Err(broken_off(connection, mail, fault).await);
        }
        if is_last {
            if following.is_some() {
                faults::reached(Point::Data);
            }
            connection.steps.end(Phase::Content);
            return Ok(());
        }
        faults::reached(Point::Content);
    }
}

/// A relay that does not want the rest of the content may say so before it hangs up; its words are worth more than the fault.
async fn broken_off(connection: &mut Connection, mail: &OutgoingMail, fault: LinkFault) -> SendReport {
    match connection.read_last_words().await {
        Some(reply) if reply.code >= 400 => {
            SendReport::Refused { phase: Phase::Content, reply: reply.to_reply(Some(&mail.to)) }
        }
        _ => SendReport::Broken { phase: Phase::Content, fault },
    }
}

async fn write(connection: &mut Connection, phase: Phase, bytes: &[u8], replies: u32) -> Result<(), SendReport> {
    connection.write(bytes, replies).await.map_err(|fault| SendReport::Broken { phase, fault })
}

/// Writes a command that is answered before the next one. A reply that came before it would be taken for its own.
async fn write_in_turn(connection: &mut Connection, phase: Phase, command: &[u8]) -> Result<(), SendReport> {
    if let Some(fault) = connection.out_of_turn().await {
        connection.spoil();
        return Err(SendReport::Broken { phase, fault });
    }
    write(connection, phase, command, 1).await
}

async fn step(
    connection: &mut Connection,
    mail: &OutgoingMail,
    phase: Phase,
    wanted: &Range<u16>,
) -> Result<Reply, SendReport> {
    let reply = connection.read_reply().await;
    connection.steps.end(phase);
    judge(connection, mail, phase, reply, wanted)
}

fn judge(
    connection: &mut Connection,
    mail: &OutgoingMail,
    phase: Phase,
    reply: Result<RawReply, LinkFault>,
    wanted: &Range<u16>,
) -> Result<Reply, SendReport> {
    match reply {
        Err(fault) => Err(SendReport::Broken { phase, fault }),
        Ok(reply) if wanted.contains(&reply.code) => Ok(reply.to_reply(Some(&mail.to))),
        Ok(reply) if reply.code >= 400 => Err(SendReport::Refused { phase, reply: reply.to_reply(Some(&mail.to)) }),
        Ok(_) => {
            connection.spoil();
            Err(SendReport::Broken { phase, fault: LinkFault::BadReply })
        }
    }
}
