//! A line to the sink that is as long as one wishes: every byte arrives a fixed time after it was sent, as many at once as
//! one likes.
//!
//! Invariant: bandwidth is not limited, and the bytes of one direction never overtake each other. What passing the bytes on
//! takes by itself is part of the delay: it is measured first, and taken off.

use std::{
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use super::Task;

/// Read at once; a mail of 2 kB is far smaller.
const CHUNK: usize = 64 * 1024;
/// Round trips that are measured.
const PROBES: u32 = 10;

/// Bytes under way; none: the sender has closed its direction.
struct Parcel {
    due: Instant,
    to: UnboundedSender<Vec<u8>>,
    bytes: Vec<u8>,
}

/// A port that leads to the sink.
pub(crate) struct DelayLine {
    port: u16,
    _accepting: Task,
}

impl DelayLine {
    pub(crate) async fn start(sink: u16, one_way: Duration) -> anyhow::Result<Self> {
        let untrimmed = Self::with(sink, one_way).await?;
        let excess = round_trip(untrimmed.port).await?.saturating_sub(one_way * 2);
        Self::with(sink, one_way.saturating_sub(excess / 2)).await
    }

    async fn with(sink: u16, one_way: Duration) -> anyhow::Result<Self> {
        let (listener, port) = super::listen().await?;
        let (parcels, under_way) = mpsc::channel();
        // The delay is the same for all, so that what was sent first is due first: one thread serves every connection.
        // A thread, because tokio's timers are whole milliseconds, a tenth of what is to be kept.
        thread::Builder::new().name("delay line".to_owned()).spawn(move || hand_over(&under_way))?;
        let accepting = Task(tokio::spawn(accept(listener, sink, parcels, one_way)).abort_handle());
        Ok(Self { port, _accepting: accepting })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }
}

fn hand_over(under_way: &mpsc::Receiver<Parcel>) {
    while let Ok(parcel) = under_way.recv() {
        thread::sleep(parcel.due.saturating_duration_since(Instant::now()));
        // Whoever waited for it may have gone.
        drop(parcel.to.send(parcel.bytes));
    }
}

async fn accept(listener: TcpListener, sink: u16, parcels: mpsc::Sender<Parcel>, one_way: Duration) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let parcels = parcels.clone();
        connections.spawn(async move {
            // The kernel has accepted at once; over a real line the third packet of the handshake comes after three ways,
            // and only then does the relay greet.
            tokio::time::sleep(one_way * 3).await;
            // A connection that breaks is the daemon's to notice.
            drop(connect(client, sink, parcels, one_way).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, sink: u16, parcels: mpsc::Sender<Parcel>, one_way: Duration) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", sink)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        carry(from_client, to_server, parcels.clone(), one_way),
        carry(from_server, to_client, parcels, one_way)
    )?;
    Ok(())
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    parcels: mpsc::Sender<Parcel>,
    one_way: Duration,
) -> io::Result<()> {
    let (arrived, mut arrivals) = unbounded_channel();
    let sending = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from.read(&mut chunk).await?;
            let parcel = Parcel { due: Instant::now() + one_way, to: arrived.clone(), bytes: chunk[..length].to_vec() };
            parcels.send(parcel).map_err(io::Error::other)?;
            if length == 0 {
                return Ok(());
            }
        }
    };
    let arriving = async {
        while let Some(bytes) = arrivals.recv().await {
            if bytes.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(sending, arriving)?;
    Ok(())
}

/// The median time that the relay behind this port takes to answer.
pub(super) async fn round_trip(port: u16) -> anyhow::Result<Duration> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    ensure!(line.starts_with("220"), "the relay greets with {line}");
    let mut times = Vec::new();
    for _ in 0..PROBES {
        let begun = Instant::now();
        stream.write_all(b"NOOP\r\n").await?;
        line.clear();
        stream.read_line(&mut line).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("nothing was measured")
}
