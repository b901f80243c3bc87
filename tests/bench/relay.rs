//! The relay of a run: `smtp-sink`, and what stands before it on the path.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::TcpListener, task::AbortHandle};

use self::{delay::DelayLine, starttls::StartTls};
use super::{postfix::Sink, work::Relay};

mod delay;

mod starttls;

/// How far away a distant relay is, there and back.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(20);

/// A sink and the way to it.
pub(crate) struct Route {
    pub(crate) sink: Sink,
    front: Front,
}

enum Front {
    Nothing,
    StartTls(StartTls),
    Delay(DelayLine),
}

impl Route {
    /// A relay of this kind, with a sink that counts.
    pub(crate) async fn start(relay: Relay, scratch: &Path) -> anyhow::Result<Self> {
        let sink = match relay {
            Relay::Plain | Relay::StartTls | Relay::Distant { pipelining: true } => Sink::counting(scratch).await?,
            Relay::Distant { pipelining: false } => Sink::without_pipelining(scratch).await?,
        };
        let front = match relay {
            Relay::Plain => Front::Nothing,
            Relay::StartTls => Front::StartTls(StartTls::start(sink.port(), scratch).await?),
            Relay::Distant { .. } => Front::Delay(DelayLine::start(sink.port(), ROUND_TRIP / 2).await?),
        };
        Ok(Self { sink, front })
    }

    /// Straight to this sink.
    pub(crate) const fn to(sink: Sink) -> Self {
        Self { sink, front: Front::Nothing }
    }

    /// Where a daemon connects to.
    pub(crate) const fn port(&self) -> u16 {
        match &self.front {
            Front::Nothing => self.sink.port(),
            Front::StartTls(tls) => tls.port(),
            Front::Delay(line) => line.port(),
        }
    }

    /// What a daemon is told of the relay's TLS.
    pub(crate) fn tls_settings(&self) -> Vec<(String, String)> {
        let authority: Option<PathBuf> = match &self.front {
            Front::StartTls(tls) => Some(tls.authority()),
            Front::Nothing | Front::Delay(_) => None,
        };
        let mut settings = vec![("SMTP_USE_TLS".to_owned(), authority.is_some().to_string())];
        settings.extend(authority.map(|file| ("SMTP_CA_FILE".to_owned(), file.display().to_string())));
        settings
    }

    /// Whether some of the path is in this process, whose CPU is then part of what the relay costs.
    pub(crate) const fn passes_through_us(&self) -> bool {
        !matches!(self.front, Front::Nothing)
    }

    /// Replies to NOOP, measured over the path: what the round trip really is.
    pub(crate) async fn round_trip(&self) -> anyhow::Result<Duration> {
        delay::round_trip(self.port()).await
    }
}

/// A task that ends when this is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen() -> anyhow::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}
