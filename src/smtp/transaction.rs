//! One mail to one recipient: MAIL, RCPT, DATA, content, and the reply to the final dot.
//!
//! Invariant: one recipient a transaction, so that a refusal concerns nobody else and the reply to the dot is this recipient's.
//! Invariant: the step is `FinalDot` only once the last byte of the terminator was handed to the socket. Before that the
//! relay cannot have accepted the mail; after it nobody can say that it has not.

use std::ops::Range;

use super::{connection::Connection, content::ContentEncoder};
use crate::{
    email::{EmailAddress, LinkFault, Phase, Reply, SendReport},
    faults::{self, Point},
};

/// Content is written in pieces of this size; most mails fit into one, terminator included.
const PIECE_BYTES: usize = 64 * 1024;

/// Positive replies to MAIL, RCPT and the final dot.
const DONE: Range<u16> = 200..300;
/// The only go-ahead for content.
const GO_AHEAD: Range<u16> = 354..355;

/// A mail, ready to go.
#[derive(Clone, Copy)]
pub struct OutgoingMail<'a> {
    /// The envelope's sender.
    pub from: &'a EmailAddress,
    /// The one recipient.
    pub to: &'a EmailAddress,
    /// Header and body as they will be signed and seen; line ends and dots are taken care of here.
    pub message: &'a [u8],
}

/// Sends it, and says how that went. What state the connection is in, it knows itself.
pub(super) async fn send(connection: &mut Connection, mail: &OutgoingMail<'_>) -> SendReport {
    if let Some(missing) = missing_capability(connection, mail) {
        return SendReport::NotCapable { missing: missing.to_owned() };
    }
    connection.mails += 1;
    match transact(connection, mail).await {
        Ok(reply) => SendReport::Accepted { reply },
        Err(report) => {
            connection.needs_reset = true;
            report
        }
    }
}

async fn transact(connection: &mut Connection, mail: &OutgoingMail<'_>) -> Result<Reply, SendReport> {
    if connection.capabilities.pipelining {
        envelope_in_one_flight(connection, mail).await?;
    } else {
        envelope_step_by_step(connection, mail).await?;
    }
    write_content(connection, mail).await?;
    faults::reached(Point::FinalDot);
    let reply = connection.read_final_reply().await;
    faults::reached(Point::Replied);
    judge(connection, mail, Phase::FinalDot, reply, &DONE)
}

fn missing_capability(connection: &Connection, mail: &OutgoingMail<'_>) -> Option<&'static str> {
    let offered = &connection.capabilities;
    if needs_smtputf8(mail) && !offered.smtputf8 {
        return Some("the address holds characters beyond ASCII and the relay does not offer SMTPUTF8");
    }
    if !offered.eight_bit_mime && !mail.message.is_ascii() {
        return Some("the content holds bytes above 127 and the relay does not offer 8BITMIME");
    }
    let bytes = u64::try_from(mail.message.len()).unwrap_or(u64::MAX);
    offered.size_max.is_some_and(|max| bytes > max).then_some("the mail is larger than the relay takes (SIZE)")
}

fn needs_smtputf8(mail: &OutgoingMail<'_>) -> bool {
    mail.from.needs_smtputf8() || mail.to.needs_smtputf8()
}

fn mail_command(connection: &Connection, mail: &OutgoingMail<'_>) -> String {
    let offered = &connection.capabilities;
    let mut command = format!("MAIL FROM:<{}>", mail.from.as_str());
    if offered.size {
        command.push_str(&format!(" SIZE={}", mail.message.len()));
    }
    if offered.eight_bit_mime && !mail.message.is_ascii() {
        command.push_str(" BODY=8BITMIME");
    }
    if needs_smtputf8(mail) {
        command.push_str(" SMTPUTF8");
    }
    command.push_str("\r\n");
    command
}

fn rcpt_command(mail: &OutgoingMail<'_>) -> String {
    format!("RCPT TO:<{}>\r\n", mail.to.as_str())
}

async fn envelope_step_by_step(connection: &mut Connection, mail: &OutgoingMail<'_>) -> Result<(), SendReport> {
    if connection.needs_reset {
        write(connection, Phase::Mail, b"RSET\r\n", 1).await?;
        finish_reset(connection, mail).await?;
    }
    let (sender, recipient) = (mail_command(connection, mail), rcpt_command(mail));
    for (phase, command, wanted, written) in [
        (Phase::Mail, sender.as_str(), DONE, Point::Mail),
        (Phase::Rcpt, &recipient, DONE, Point::Rcpt),
        (Phase::Data, "DATA\r\n", GO_AHEAD, Point::Data),
    ] {
        write(connection, phase, command.as_bytes(), 1).await?;
        faults::reached(written);
        step(connection, mail, phase, &wanted).await?;
    }
    Ok(())
}

/// RSET (where the last transaction was left unfinished), MAIL, RCPT and DATA in one write (RFC 2920), then their
/// replies in order. All of them are read whatever they say, or the connection is spoilt.
async fn envelope_in_one_flight(connection: &mut Connection, mail: &OutgoingMail<'_>) -> Result<(), SendReport> {
    let reset = if connection.needs_reset { "RSET\r\n" } else { "" };
    let flight = format!("{reset}{}{}DATA\r\n", mail_command(connection, mail), rcpt_command(mail));
    let replies = if connection.needs_reset { 4 } else { 3 };
    write(connection, Phase::Mail, flight.as_bytes(), replies).await?;
    faults::reached(Point::Data);
    if connection.needs_reset {
        finish_reset(connection, mail).await?;
    }
    let sender = step(connection, mail, Phase::Mail, &DONE).await;
    if connection.is_spoilt() {
        return sender.map(drop);
    }
    let recipient = step(connection, mail, Phase::Rcpt, &DONE).await;
    let recipient_was_refused = recipient.is_err();
    // The first refusal is the mail's; what follows it only tells in what state the connection is.
    match sender.and(recipient) {
        Ok(_) => step(connection, mail, Phase::Data, &GO_AHEAD).await.map(drop),
        Err(report) => {
            if !connection.is_spoilt() {
                abandon(connection, recipient_was_refused).await;
            }
            Err(report)
        }
    }
}

/// Reads DATA's reply after a refusal. A relay that gives the go-ahead all the same has no recipient, and gets an empty
/// mail to refuse (RFC 2920 §3.1); anything but that refusal closes the connection.
async fn abandon(connection: &mut Connection, recipient_was_refused: bool) {
    let mut reply = connection.read_reply().await;
    if recipient_was_refused && reply.as_ref().is_ok_and(|reply| GO_AHEAD.contains(&reply.code)) {
        reply = match connection.write(b".\r\n", 1).await {
            Ok(()) => connection.read_reply().await,
            Err(fault) => Err(fault),
        };
    }
    if !reply.is_ok_and(|reply| reply.code >= 400) {
        connection.spoil();
    }
}

async fn finish_reset(connection: &mut Connection, mail: &OutgoingMail<'_>) -> Result<(), SendReport> {
    let reply = connection.read_reply().await;
    match judge(connection, mail, Phase::Mail, reply, &DONE) {
        // A relay that refuses to forget the last mail says nothing about this one.
        Err(SendReport::Refused { reply, .. }) if reply.code != 421 => {
            connection.spoil();
            Err(SendReport::Broken { phase: Phase::Mail, fault: LinkFault::BadReply })
        }
        Err(report) => Err(report),
        Ok(_) => {
            connection.needs_reset = false;
            Ok(())
        }
    }
}

async fn write_content(connection: &mut Connection, mail: &OutgoingMail<'_>) -> Result<(), SendReport> {
    let mut encoder = ContentEncoder::new(mail.message);
    let mut piece = Vec::with_capacity(PIECE_BYTES.min(mail.message.len() + mail.message.len() / 32) + 64);
    loop {
        piece.clear();
        let is_last = encoder.fill(&mut piece, PIECE_BYTES);
        // A reply that came before the terminator would be taken for the answer to it.
        if let Some(fault) = connection.out_of_turn() {
            return Err(broken_off(connection, mail, fault).await);
        }
        if let Err(fault) = connection.write(&piece, u32::from(is_last)).await {
            return Err(broken_off(connection, mail, fault).await);
        }
        if is_last {
            return Ok(());
        }
        faults::reached(Point::Content);
    }
}

/// A relay that does not want the rest of the content may say so before it hangs up; its words are worth more than the fault.
async fn broken_off(connection: &mut Connection, mail: &OutgoingMail<'_>, fault: LinkFault) -> SendReport {
    match connection.read_last_words().await {
        Some(reply) if reply.code >= 400 => {
            SendReport::Refused { phase: Phase::Content, reply: reply.to_reply(Some(mail.to)) }
        }
        _ => SendReport::Broken { phase: Phase::Content, fault },
    }
}

async fn write(connection: &mut Connection, phase: Phase, bytes: &[u8], replies: u32) -> Result<(), SendReport> {
    connection.write(bytes, replies).await.map_err(|fault| SendReport::Broken { phase, fault })
}

async fn step(
    connection: &mut Connection,
    mail: &OutgoingMail<'_>,
    phase: Phase,
    wanted: &Range<u16>,
) -> Result<Reply, SendReport> {
    let reply = connection.read_reply().await;
    judge(connection, mail, phase, reply, wanted)
}

fn judge(
    connection: &mut Connection,
    mail: &OutgoingMail<'_>,
    phase: Phase,
    reply: Result<super::reply::RawReply, LinkFault>,
    wanted: &Range<u16>,
) -> Result<Reply, SendReport> {
    match reply {
        Err(fault) => Err(SendReport::Broken { phase, fault }),
        Ok(reply) if wanted.contains(&reply.code) => Ok(reply.to_reply(Some(mail.to))),
        Ok(reply) if reply.code >= 400 => Err(SendReport::Refused { phase, reply: reply.to_reply(Some(mail.to)) }),
        Ok(_) => {
            connection.spoil();
            Err(SendReport::Broken { phase, fault: LinkFault::BadReply })
        }
    }
}
