use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::{JoinHandle, JoinSet},
};
use url::Url;

/// An AMQP method: class and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(u16, u16);

impl Method {
    /// The broker has cancelled a consumer.
    pub const BASIC_CANCEL: Self = Self(60, 30);
    /// The broker delivers a message.
    pub const BASIC_DELIVER: Self = Self(60, 60);

    const fn packed(self) -> u64 {
        (self.0 as u64) << 16 | self.1 as u64
    }
}

/// Frame types of AMQP 0-9-1.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// A line to the broker that understands its frames, and can lose those of one method on the way to us.
pub struct Frames {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// The method, packed; 0: everything passes.
    swallow: AtomicU64,
    swallowed: AtomicU64,
}

impl Frames {
    /// A line to where this URL points.
    pub async fn start(url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let upstream: Arc<str> = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port")).into();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let lines = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (upstream, shared) = (Arc::clone(&upstream), Arc::clone(&lines));
                passing.spawn(async move {
                    let Ok(far) = TcpStream::connect(&*upstream).await else { return };
                    let ((mut from_us, to_us), (from_broker, mut to_broker)) = (near.into_split(), far.into_split());
                    let out = async {
                        let _ = copy(&mut from_us, &mut to_broker).await;
                        let _ = to_broker.shutdown().await;
                    };
                    let _ = tokio::join!(out, pass_frames(from_broker, to_us, &shared));
                });
            }
        });
        Self { address, shared, listening }
    }

    /// The same URL through this line.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.into()
    }

    /// Loses this method from now on, and the content that belongs to it.
    pub fn swallow(&self, method: Method) {
        self.shared.swallow.store(method.packed(), Ordering::SeqCst);
    }

    /// Loses nothing any more.
    pub fn pass_everything(&self) {
        self.shared.swallow.store(0, Ordering::SeqCst);
    }

    /// How many methods were lost.
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::SeqCst)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Type, channel, size, payload, and the octet that ends it.
async fn pass_frames(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) -> io::Result<()> {
    // A lost method's content follows on its channel.
    let mut losing: Vec<u16> = Vec::new();
    loop {
        let mut head = [0; 7];
        from.read_exact(&mut head).await?;
        let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut rest = vec![0; size + 1];
        from.read_exact(&mut rest).await?;
        if kind == METHOD {
            losing.retain(|lost| *lost != channel);
            let method = Method(u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]));
            if method.packed() == shared.swallow.load(Ordering::SeqCst) {
                shared.swallowed.fetch_add(1, Ordering::SeqCst);
                losing.push(channel);
                continue;
            }
        }
        if matches!(kind, HEADER | BODY) && losing.contains(&channel) {
            continue;
        }
        to.write_all(&head).await?;
        to.write_all(&rest).await?;
    }
}
