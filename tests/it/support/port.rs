use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// A port that stays ours also while nobody listens at it.
///
/// What is only bound and closed again is free, and the next connection that anybody makes may leave from it. This keeps a
/// socket bound to it that never listens: Linux gives such a port to nobody who asks for any, refuses who connects to it, and
/// lets those listen who name it and have `SO_REUSEADDR`, as all of tokio's and the standard library's listeners have.
pub struct Port {
    address: SocketAddr,
    _kept: TcpSocket,
}

impl Port {
    /// A free one.
    pub fn reserve() -> Self {
        Self::reserve_at([127, 0, 0, 1])
    }

    /// A free one of another of this machine's addresses.
    pub fn reserve_at(address: [u8; 4]) -> Self {
        let kept = TcpSocket::new_v4().expect("a socket");
        kept.set_reuseaddr(true).expect("it is not bound yet");
        kept.bind((Ipv4Addr::from(address), 0).into()).expect("a free port");
        Self { address: kept.local_addr().expect("it is bound"), _kept: kept }
    }

    /// Where it is.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens at it, until what is returned is dropped.
    pub async fn listen(&self) -> TcpListener {
        TcpListener::bind(self.address).await.expect("the port is ours")
    }
}
