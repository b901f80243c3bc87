use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use url::Url;

/// A line that passes bytes on, until it is cut.
pub struct Proxy {
    address: SocketAddr,
    upstream: String,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// A line to where this URL points.
    pub async fn start(url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let upstream = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let listening = Mutex::new(Some(tokio::spawn(pass_on(listener, upstream.clone().into()))));
        Self { address, upstream, listening }
    }

    /// The same URL through this line.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
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
        let listener = TcpListener::bind(self.address).await.expect("the port is still ours");
        let task = tokio::spawn(pass_on(listener, self.upstream.clone().into()));
        *self.listening.lock().expect("no test panics here") = Some(task);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(task) = self.listening.lock().ok().and_then(|mut listening| listening.take()) {
            task.abort();
        }
    }
}

async fn pass_on(listener: TcpListener, upstream: Arc<str>) {
    // Aborted with this task, and their connections with them.
    let mut lines = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let upstream = Arc::clone(&upstream);
        lines.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(&*upstream).await {
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
