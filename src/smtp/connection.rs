//! A connection: bytes out, replies in, each under its limit.
//!
//! Invariant: it may be used again only while it is in step: every reply that is owed has been read, nothing more has
//! come, nothing failed. The ledger is kept here, so that no caller can forget a reply and give the next mail the
//! answer of the one before.

use std::{io, mem::MaybeUninit, time::Duration};

use bytes::BytesMut;
use futures_util::FutureExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::client::TlsStream;

use super::{
    fault::RelayError,
    reply::{RawReply, ReplyParser},
    session::Capabilities,
    steps::Steps,
    tls::TlsClient,
};
use crate::email::{LinkFault, Phase};

/// A silent peer is asked after this long, so that a vanished one is noticed while we wait ten minutes for its reply.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a relay has to say goodbye.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a relay that broke off has to say why.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// How often TLS may have something to say for itself where the relay should be silent: its tickets come in a flight or two.
const NO_REPLIES_MAX: usize = 16;

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    async fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(into).await,
            Self::Tls(stream) => stream.read_buf(into).await,
        }
    }

    /// Returns once the last byte has been handed to the socket.
    /// `written` counts what was handed over, whether or not the rest could be.
    async fn write_all(&mut self, bytes: &[u8], written: &mut usize) -> io::Result<()> {
        while *written < bytes.len() {
            let rest = &bytes[*written..];
            let handed_over = match self {
                Self::Plain(stream) => stream.write(rest).await?,
                Self::Tls(stream) => stream.write(rest).await?,
            };
            if handed_over == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            *written += handed_over;
        }
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.flush().await,
        }
    }
}

/// A connection to a relay.
pub(super) struct Connection {
    wire: Wire,
    incoming: BytesMut,
    parser: ReplyParser,
    step_timeout: Duration,
    dot_timeout: Duration,
    /// Bytes of the last write that were handed to the socket, or to TLS, which may be ahead of the socket.
    written: usize,
    /// Commands written whose reply has not been read.
    owed: u32,
    /// Something failed or came out of turn: only good for closing.
    is_spoilt: bool,
    /// What the relay offers; as of the last EHLO.
    pub(super) capabilities: Capabilities,
    /// A transaction was left unfinished: RSET goes before the next MAIL.
    pub(super) needs_reset: bool,
    /// Transactions begun on it.
    pub(super) mails: u32,
    /// How many it may carry.
    pub(super) mails_max: u32,
    /// Of the mail that is being carried; before the first one, of opening it.
    pub(super) steps: Steps,
    /// Of opening it, for whoever waited for that.
    pub(super) opening: Option<Steps>,
}

impl Connection {
    /// `steps`: of opening it, up to here.
    pub(super) fn new(
        stream: TcpStream,
        step_timeout: Duration,
        dot_timeout: Duration,
        steps: Steps,
    ) -> io::Result<Self> {
        // Without it Nagle's algorithm and delayed acknowledgements make a mail cost 40 ms.
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3),
        )?;
        Ok(Self {
            wire: Wire::Plain(stream),
            incoming: BytesMut::with_capacity(1024),
            parser: ReplyParser::default(),
            step_timeout,
            dot_timeout,
            written: 0,
            owed: 0,
            is_spoilt: false,
            capabilities: Capabilities::default(),
            needs_reset: false,
            mails: 0,
            mails_max: u32::MAX,
            steps,
            opening: None,
        })
    }

    /// The same connection under TLS. What came in plain before the handshake must not be read behind it.
    pub(super) async fn into_tls(mut self, client: &TlsClient) -> Result<Self, RelayError> {
        let Wire::Plain(stream) = self.wire else { return Ok(self) };
        let stream = timeout(self.step_timeout, client.handshake(stream))
            .await
            .map_err(|_| RelayError::link(Phase::StartTls, &LinkFault::TimedOut(self.step_timeout)))??;
        self.wire = Wire::Tls(Box::new(stream));
        self.steps.end(Phase::StartTls);
        self.capabilities = Capabilities { is_encrypted: true, ..Capabilities::default() };
        Ok(self)
    }

    /// Hands `bytes` to the socket, to the last one. `replies` is how many the relay will owe for them.
    pub(super) async fn write(&mut self, bytes: &[u8], replies: u32) -> Result<(), LinkFault> {
        self.owed += replies;
        self.written = 0;
        let result = match timeout(self.step_timeout, self.wire.write_all(bytes, &mut self.written)).await {
            Ok(result) => result.map_err(|error| link_fault(&error)),
            Err(_) => Err(LinkFault::TimedOut(self.step_timeout)),
        };
        self.is_spoilt |= result.is_err();
        result
    }

    /// The next reply, within the limit of a step.
    pub(super) async fn read_reply(&mut self) -> Result<RawReply, LinkFault> {
        self.read_reply_within(self.step_timeout).await
    }

    /// The reply to the final dot, which has a limit of its own: impatience here makes duplicates. Cancel-safe.
    pub(super) async fn read_final_reply(&mut self, deadline: Instant) -> Result<RawReply, LinkFault> {
        let limit = self.dot_timeout;
        let result = timeout_at(deadline, self.next_reply()).await;
        self.note(result.unwrap_or(Err(LinkFault::TimedOut(limit))))
    }

    /// How long the reply to the final dot is waited for.
    pub(super) const fn dot_timeout(&self) -> Duration {
        self.dot_timeout
    }

    /// How much of the last write was handed over, if not all of it was.
    pub(super) const fn written(&self) -> usize {
        self.written
    }

    /// What a relay that broke off the content has to say about it, if anything.
    pub(super) async fn read_last_words(&mut self) -> Option<RawReply> {
        self.is_spoilt = true;
        self.owed += 1;
        self.read_reply_within(self.step_timeout.min(LAST_WORDS_TIMEOUT)).await.ok()
    }

    async fn read_reply_within(&mut self, limit: Duration) -> Result<RawReply, LinkFault> {
        let result = timeout(limit, self.next_reply()).await.unwrap_or(Err(LinkFault::TimedOut(limit)));
        self.note(result)
    }

    fn note(&mut self, result: Result<RawReply, LinkFault>) -> Result<RawReply, LinkFault> {
        // After a 421 the relay closes.
        self.is_spoilt |= result.as_ref().map_or(true, |reply| reply.code == 421);
        result
    }

    async fn next_reply(&mut self) -> Result<RawReply, LinkFault> {
        loop {
            if let Some(reply) = self.parser.take(&mut self.incoming)? {
                self.owed = self.owed.checked_sub(1).ok_or(LinkFault::BadReply)?;
                return Ok(reply);
            }
            if self.wire.read(&mut self.incoming).await.map_err(|error| link_fault(&error))? == 0 {
                return Err(LinkFault::Closed);
            }
        }
    }

    /// What was read does not fit: nothing more is to be believed.
    pub(super) fn spoil(&mut self) {
        self.is_spoilt = true;
    }

    /// Whether it is only good for closing.
    pub(super) const fn is_spoilt(&self) -> bool {
        self.is_spoilt
    }

    /// What the relay did while it was not its turn, if anything; that it did nothing is known at once.
    ///
    /// The socket itself is asked, because what the runtime knows of it may be a moment old.
    pub(super) async fn out_of_turn(&mut self) -> Option<LinkFault> {
        for _ in 0..NO_REPLIES_MAX {
            if self.incoming.is_empty() {
                match self.wire.read(&mut self.incoming).now_or_never() {
                    Some(Ok(0)) => return Some(LinkFault::Closed),
                    Some(Ok(_)) | None => {}
                    Some(Err(error)) => return Some(link_fault(&error)),
                }
            }
            if !self.incoming.is_empty() {
                break;
            }
            let tcp = self.wire.tcp();
            match SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(link_fault(&error)),
                // Under TLS this may be a session ticket, which is no reply.
                Ok(_) => match timeout(self.step_timeout, tcp.readable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Some(link_fault(&error)),
                    Err(_) => return Some(LinkFault::TimedOut(self.step_timeout)),
                },
            }
        }
        Some(LinkFault::BadReply)
    }

    /// Whether the next mail may go over it.
    pub(super) fn is_in_step(&self) -> bool {
        !self.is_spoilt && self.owed == 0 && self.incoming.is_empty() && !self.parser.is_midway()
    }

    /// Whether a connection that lay idle is still open and silent.
    pub(super) async fn is_alive(&mut self) -> bool {
        self.out_of_turn().await.is_none()
    }

    /// Returns when the relay says or does something although it was not asked: closing, as a rule. Cancel-safe.
    pub(super) async fn ends(&mut self) {
        if self.is_in_step() {
            let _ = self.wire.read(&mut self.incoming).await;
        }
        self.is_spoilt = true;
    }

    /// Asks for a sign of life, so that the relay does not take the connection for abandoned. False: it gave none.
    pub(super) async fn keep_alive(&mut self) -> bool {
        let answer = match self.write(b"NOOP\r\n", 1).await {
            Ok(()) => self.read_reply().await,
            Err(fault) => Err(fault),
        };
        answer.is_ok_and(|reply| reply.code < 300) && self.is_in_step()
    }

    /// Says goodbye, if that is possible, and closes.
    pub(super) async fn quit(mut self) {
        if !self.is_in_step() {
            return;
        }
        let _ = timeout(QUIT_TIMEOUT, async {
            self.write(b"QUIT\r\n", 1).await?;
            self.next_reply().await
        })
        .await;
    }
}

fn link_fault(error: &io::Error) -> LinkFault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => LinkFault::Closed,
        kind => LinkFault::Broken(kind.to_string()),
    }
}
