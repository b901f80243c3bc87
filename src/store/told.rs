//! What daemons tell each other through the database: that something was changed which all of them follow.
//!
//! One connection a daemon listens (`LISTEN postrider`). Whoever follows a topic looks when it was told, and every now and then
//! anyway: a message that was lost, or a connection that only seems to live, costs a moment and nothing else.
//! Invariant: a topic counts as told after every new connection, so that what was missed meanwhile is caught up with.

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgConnection,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Store, StoreError};

/// The channel of PostgreSQL's.
const CHANNEL: &str = "postrider";
/// Pause before listening is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Another version of a template is active, or none.
    Templates,
    /// A lane is paused, or goes on.
    Lanes,
    /// A replay begins, pauses, goes on or is given up.
    Replays,
}

impl Topic {
    const ALL: [Self; 3] = [Self::Templates, Self::Lanes, Self::Replays];

    const fn name(self) -> &'static str {
        match self {
            Self::Templates => "templates",
            Self::Lanes => "lanes",
            Self::Replays => "replays",
        }
    }
}

/// Tells all daemons, when this transaction commits.
///
/// # Errors
/// When the database is away.
pub async fn tell(connection: &mut PgConnection, topic: Topic) -> Result<(), StoreError> {
    sqlx::query!("select pg_notify($1, $2)", CHANNEL, topic.name()).execute(connection).await?;
    Ok(())
}

/// How often each topic was told.
#[derive(Debug, Default)]
pub(super) struct Told([watch::Sender<u64>; 3]);

impl Told {
    fn ring(&self, topic: Topic) {
        self.0[topic as usize].send_modify(|times| *times += 1);
    }

    fn ring_all(&self) {
        Topic::ALL.into_iter().for_each(|topic| self.ring(topic));
    }
}

impl Store {
    /// Changes whenever the topic is told, and whenever something may have been missed.
    #[must_use]
    pub fn told(&self, topic: Topic) -> watch::Receiver<u64> {
        self.told.0[topic as usize].subscribe()
    }

    /// Listens until `end`.
    pub async fn listen(self: Arc<Self>, end: CancellationToken) {
        let options = self.pool.connect_options();
        // Of its own: it is held for as long as the daemon lives, and no statement has to wait for it.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with((*options).clone());
        let listening = async {
            loop {
                if let Err(error) = self.listen_once(&pool).await {
                    tracing::debug!(%error, "cannot listen for changes; they are looked for every now and then");
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! { () = end.cancelled() => {}, () = listening => {} }
        pool.close().await;
    }

    /// Until the connection is lost.
    async fn listen_once(&self, pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        self.told.ring_all();
        while let Some(told) = listener.try_recv().await? {
            if let Some(topic) = Topic::ALL.into_iter().find(|topic| topic.name() == told.payload()) {
                self.told.ring(topic);
            }
        }
        Ok(())
    }
}
