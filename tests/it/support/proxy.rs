use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use url::Url;

use super::port::Port;

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// At once.
    Free,
    /// This much later, piece by piece.
    Slow(Duration),
    /// Not at all: connections are taken and stay open, and nobody hears anything.
    Stalled,
}

/// A line that passes bytes on, until it is cut, stalled or slowed down.
pub struct Proxy {
    port: Port,
    upstream: String,
    flow: watch::Sender<Flow>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// A line to where this URL points.
    pub async fn start(url: &str) -> Self {
        Self::start_at([127, 0, 0, 1], url).await
    }

    /// The same that begins at another of this machine's addresses.
    pub async fn start_at(address: [u8; 4], url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let upstream = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
        let port = Port::reserve_at(address);
        let listener = port.listen().await;
        let flow = watch::Sender::new(Flow::Free);
        let listening = Mutex::new(Some(tokio::spawn(pass_on(listener, upstream.clone().into(), flow.subscribe()))));
        Self { port, upstream, flow, listening }
    }

    /// The same URL through this line.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.port.address().port())).expect("a port");
        url.into()
    }

    /// Cuts every connection and refuses new ones.
    pub async fn cut(&self) {
        let listening = self.listening.lock().expect("no test panics here").take();
        if let Some(task) = listening {
            task.abort();
            // Only when the task is gone is the port closed.
            let _ = task.await;
        }
    }

    /// Takes connections again, on the same port.
    pub async fn mend(&self) {
        let listener = self.port.listen().await;
        let task = tokio::spawn(pass_on(listener, self.upstream.clone().into(), self.flow.subscribe()));
        *self.listening.lock().expect("no test panics here") = Some(task);
    }

    /// From now on nothing passes, though connections are taken and kept: a host that hangs.
    pub fn stall(&self) {
        self.flow.send_replace(Flow::Stalled);
    }

    /// From now on every piece takes this much longer, in each direction.
    pub fn slow(&self, pause: Duration) {
        self.flow.send_replace(Flow::Slow(pause));
    }

    /// Everything passes at once again, what was held up first.
    pub fn free(&self) {
        self.flow.send_replace(Flow::Free);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(task) = self.listening.lock().ok().and_then(|mut listening| listening.take()) {
            task.abort();
        }
    }
}

async fn pass_on(listener: TcpListener, upstream: Arc<str>, flow: watch::Receiver<Flow>) {
    // Aborted with this task, and their connections with them.
    let mut lines = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while lines.try_join_next().is_some() {}
        let (upstream, mut flow) = (Arc::clone(&upstream), flow.clone());
        lines.spawn(async move {
            if !passes(&mut flow).await {
                return;
            }
            let Ok(far) = TcpStream::connect(&*upstream).await else { return };
            if near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).is_err() {
                return;
            }
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::join!(one_way(near_in, far_out, flow.clone()), one_way(far_in, near_out, flow));
        });
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if !passes(&mut flow).await || to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Waits until a piece may pass. False: the line is gone.
async fn passes(flow: &mut watch::Receiver<Flow>) -> bool {
    let Ok(now) = flow.wait_for(|flow| *flow != Flow::Stalled).await.map(|flow| *flow) else { return false };
    if let Flow::Slow(pause) = now {
        tokio::time::sleep(pause).await;
    }
    true
}
