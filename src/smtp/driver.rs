//! The task behind an open connection: it carries one mail after the other, opens the connection again when it has grown
//! old, and closes it when nobody has needed it for a while.
//!
//! Invariant: a connection that owes a reply, or on which anything was said out of turn, carries no further mail.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    connection::Connection,
    line::{Job, Line},
    relay::Relay,
    transaction,
};
use crate::email::Lane;

/// So often a warm connection is kept from being taken for abandoned; relays count commands that lead to no mail.
const SIGNS_OF_LIFE_MAX: u32 = 20;

/// Counts as an open connection for as long as it lives.
struct Seat<'a> {
    line: &'a Line,
    has_left: bool,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if !self.has_left {
            self.line.leave();
        }
    }
}

/// Carries the lane's mails over this connection until there are none.
pub(super) async fn drive(relay: Arc<Relay>, lane: Lane, connection: Connection) {
    let line = relay.lanes.get(lane);
    let mut seat = Seat { line, has_left: false };
    let mut connection = Some(connection);
    loop {
        let mut job = None;
        if let Some(open) = connection.take() {
            (job, connection) = wait(&relay, lane, open).await.unzip();
        }
        // The place of whoever comes now is on this connection, though it must be opened again.
        let Some(job) = job.or_else(|| line.leave_or_take()) else {
            seat.has_left = true;
            relay.tell_of_room();
            return;
        };
        let _busy = line.busy();
        let sound = match connection.take() {
            Some(mut open) => open.is_alive().await.then_some(open),
            None => None,
        };
        let Some(mut open) = (match sound {
            Some(open) => Some(open),
            None => relay.open().await,
        }) else {
            job.fail();
            return;
        };
        carry_all(&mut open, line, job).await;
        if open.is_in_step() {
            if open.mails < open.mails_max {
                connection = Some(open);
            } else {
                open.quit().await;
            }
        }
    }
}

/// Waits for the next mail: as long as the relay keeps the connection, and the settings say. Nothing: it is closed.
async fn wait(relay: &Relay, lane: Lane, mut connection: Connection) -> Option<(Job, Connection)> {
    let line = relay.lanes.get(lane);
    for signs_of_life in 0.. {
        let until = Instant::now() + relay.idle_max;
        tokio::select! {
            biased;
            job = line.next() => return Some((job, connection)),
            () = connection.ends() => return None,
            () = relay.closing.cancelled() => break,
            () = tokio::time::sleep_until(until) => {}
        }
        let is_warm = line.is_needed(relay.warm(lane)) && signs_of_life < SIGNS_OF_LIFE_MAX;
        if !is_warm || !connection.keep_alive().await {
            break;
        }
    }
    connection.quit().await;
    None
}

/// This mail, and all that follow it in the same flight.
async fn carry_all(connection: &mut Connection, line: &Line, job: Job) {
    let mut following = transaction::carry(connection, line, job).await;
    while let Some(next) = following {
        following = transaction::carry_on(connection, line, next).await;
    }
}
