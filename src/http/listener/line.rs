//! One connection, as the HTTP library reads and writes it: heads are judged before they are handed on, and who is slow is cut off.
//!
//! Invariant: the library reads whole heads that were accepted, and of bodies exactly what their heads announced; after a refusal
//! it reads the end of the connection, answers what it had begun with, and the refusal is written last.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    head::{self, Framing, Received},
    pace::Pace,
    refusal::{Refusal, Refused},
};

/// Longest wait for the head of a request, also of the next one on a connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long whoever takes an answer may take nothing of it.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// How long, and how much, is still read of a request that was answered before its end: a close with unread bytes would take the
/// answer away from whoever is still writing (RFC 9112 §9.6). The bytes are twice the largest body that any address takes.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 32 * 1024 * 1024;
/// Longest pause in it: whoever has nothing more to write loses nothing.
const LINGER_PAUSE: Duration = Duration::from_millis(500);

/// How a connection fares, as others see it.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    /// Milliseconds from its beginning, and one more, to when we began to wait for the other side; 0: we do not wait.
    waits: AtomicU64,
    is_slow: AtomicBool,
    /// Ends it, to make room.
    pub(super) crowded_out: CancellationToken,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            // The first thing is to wait for something.
            waits: AtomicU64::new(1),
            is_slow: AtomicBool::new(false),
            crowded_out: CancellationToken::new(),
        }
    }

    /// Since when we have been waiting for the other side; nothing: it waits for us.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let waits = self.waits.load(Ordering::Relaxed);
        waits.checked_sub(1).map(|ms| self.began + Duration::from_millis(ms))
    }

    /// Whether a body came too slowly.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }

    fn wait(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        // Whoever sends a byte now and then waits no less for that.
        let _ = self.waits.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The other side waits for us.
    pub(super) fn work(&self) {
        self.waits.store(0, Ordering::Relaxed);
    }
}

/// What is read next.
#[derive(Debug)]
enum Stage {
    /// A head.
    Head,
    /// This many bytes of a body.
    Body(u64),
    /// Whatever comes, until the connection ends.
    Chunks,
    /// Nothing more.
    Over,
}

/// A connection.
pub(super) struct Line<S> {
    stream: S,
    watch: Arc<Watch>,
    stage: Stage,
    /// What was read and not handed on.
    buffer: BytesMut,
    /// Where the search for the head's end goes on.
    scanned: usize,
    /// At its front, the part of an accepted head that was not handed on yet.
    accepted: usize,
    head_timer: Option<Pin<Box<Sleep>>>,
    reading: Pace,
    writing: Pace,
    refusal: Option<Refusal>,
    answer_was_slow: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// One whose bodies have this long to begin to arrive.
    pub(super) fn new(stream: S, watch: Arc<Watch>, body_grace: Duration) -> Self {
        Self {
            stream,
            watch,
            stage: Stage::Head,
            buffer: BytesMut::new(),
            scanned: 0,
            accepted: 0,
            head_timer: None,
            reading: Pace::new(body_grace),
            writing: Pace::new(ANSWER_GRACE),
            refusal: None,
            answer_was_slow: false,
        }
    }

    /// Says why there is nothing more, if there is a reason, and ends it. What the reason was. `stop`: nobody is waited for long
    /// any more.
    pub(super) async fn close(mut self, stop: &CancellationToken) -> Option<Refused> {
        if self.answer_was_slow {
            return Some(Refused::AnswerTimeout);
        }
        let reason = self.refusal.as_ref().map(Refusal::reason);
        let reason = reason.or_else(|| self.watch.is_slow().then_some(Refused::BodyTimeout));
        tokio::select! {
            // Whoever has gone, or does not listen, misses nothing.
            _ = timeout(LINGER, self.end()) => {}
            () = async { stop.cancelled().await; sleep(LINGER_PAUSE).await } => {}
        }
        reason
    }

    async fn end(&mut self) -> io::Result<()> {
        // Nothing is owed but this, so it makes room for whoever asks.
        self.watch.wait();
        if let Some(refusal) = &self.refusal {
            self.stream.write_all(&refusal.bytes()).await?;
        }
        self.stream.shutdown().await?;
        if self.refusal.is_none() && !self.watch.is_slow() && !matches!(self.stage, Stage::Body(1..) | Stage::Chunks) {
            return Ok(());
        }
        let mut rest = vec![0; CHUNK_BYTES];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match timeout(LINGER_PAUSE, self.stream.read(&mut rest)).await? {
                Ok(read @ 1..) => left = left.saturating_sub(read),
                _ => break,
            }
        }
        Ok(())
    }

    /// Reads into the buffer; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut chunk = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        self.buffer.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // An empty line before a request is left over from the body before it (RFC 9112 §2.2).
            while self.scanned == 0 && self.buffer.starts_with(b"\r\n") {
                self.buffer.advance(2);
            }
            let is_begun = !self.buffer.is_empty() && self.buffer[..] != b"\r"[..];
            if is_begun {
                match head::judge(&self.buffer, &mut self.scanned) {
                    Received::Part => {}
                    Received::Whole(length, framing) => {
                        (self.accepted, self.scanned, self.head_timer) = (length, 0, None);
                        self.stage = match framing {
                            Framing::Length(bytes) => Stage::Body(bytes),
                            Framing::Chunked => Stage::Chunks,
                        };
                        self.reading.begin();
                        self.writing.begin();
                        return Poll::Ready(Ok(()));
                    }
                    Received::Refused(refusal) => return self.refuse(refusal),
                }
            }
            let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
            if timer.as_mut().poll(cx).is_ready() {
                if is_begun {
                    return self.refuse(Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        Refused::HeadTimeout,
                        format!("the head of a request arrives within {} s here", HEAD_TIMEOUT.as_secs()),
                    ));
                }
                self.stage = Stage::Over;
                return Poll::Ready(Ok(()));
            }
            self.watch.wait();
            if ready!(self.poll_fill(cx))? == 0 {
                self.stage = Stage::Over;
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Poll<io::Result<()>> {
        self.refusal = Some(refusal);
        self.stage = Stage::Over;
        Poll::Ready(Ok(()))
    }

    /// Hands on what there is, at most this much.
    fn hand_on(&mut self, out: &mut ReadBuf<'_>, most: u64) -> usize {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let bytes = self.buffer.len().min(out.remaining()).min(most);
        out.put_slice(&self.buffer[..bytes]);
        self.buffer.advance(bytes);
        bytes
    }

    /// Waits for bytes of a body; 0 is the end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(self.buffer.len()));
        }
        match self.poll_fill(cx) {
            Poll::Ready(read) => {
                if let Ok(bytes) = read {
                    self.reading.moved(bytes);
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                self.watch.wait();
                if !self.reading.is_over(cx) {
                    return Poll::Pending;
                }
                self.watch.is_slow.store(true, Ordering::Relaxed);
                self.stage = Stage::Over;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// What writing came to; whoever takes nothing for too long gets nothing more.
    fn paced<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(result) => {
                if let Ok(result) = &result {
                    let bytes = bytes(result);
                    // Flushing nothing is done all the time, also while a head is waited for.
                    if bytes > 0 || self.writing.is_waiting() {
                        self.watch.work();
                    }
                    self.writing.moved(bytes);
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                self.watch.wait();
                if !self.writing.is_over(cx) {
                    return Poll::Pending;
                }
                self.answer_was_slow = true;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.accepted > 0 {
                this.watch.work();
                this.accepted -= this.hand_on(out, this.accepted as u64);
                return Poll::Ready(Ok(()));
            }
            match this.stage {
                Stage::Head | Stage::Body(0) => {
                    this.stage = Stage::Head;
                    ready!(this.poll_head(cx))?;
                }
                Stage::Body(left) => {
                    if ready!(this.poll_body(cx))? > 0 {
                        let left = left - this.hand_on(out, left) as u64;
                        this.stage = Stage::Body(left);
                        if left == 0 {
                            this.watch.work();
                        }
                    }
                    return Poll::Ready(Ok(()));
                }
                Stage::Chunks => {
                    if ready!(this.poll_body(cx))? > 0 {
                        // Where it ends is not known here, so whoever sends may be at its end.
                        this.watch.work();
                        this.hand_on(out, u64::MAX);
                    }
                    return Poll::Ready(Ok(()));
                }
                Stage::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.paced(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.paced(cx, flushed, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
