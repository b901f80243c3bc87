//! What an error of the database means for the mail in hand.
//!
//! Invariant: only faults of the database itself (connection, resources, shutdown, and a schema that does not fit) count
//! as *away*; an error of the data is final for that one row.

use std::time::Duration;

use sqlx::Error;

use crate::{
    objects::{SetupError, ShelfError},
    tls::{self, Peer},
};

/// Why a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot do it now: wait, nothing is wrong with the mail.
    #[error("database away: {0}")]
    Away(String),
    /// The database will never take this row (SQLSTATE class 22 or 23).
    #[error("the database refuses the data ({sqlstate}): {message}")]
    Data {
        /// SQLSTATE.
        sqlstate: String,
        /// The server's message, without its detail (that may show values).
        message: String,
    },
    /// Deadlock or serialisation failure: the same statement may simply be repeated.
    #[error("database: repeat the transaction ({0})")]
    Repeat(String),
    /// `EMAIL_HASH_KEY` is not the key of this database's hashes.
    #[error(
        "EMAIL_HASH_KEY is not the key that this database's hashes were made with: known addresses would look new and mails \
         could go out twice. Put the old key back, or use another database"
    )]
    HashKeyChanged,
    /// The bytes of attachments are kept elsewhere, and that place does not do its work: the database is well.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// That place cannot be used as the settings say.
    #[error(transparent)]
    Objects(#[from] SetupError),
}

impl StoreError {
    /// No answer came.
    #[must_use]
    pub fn silent(limit: Duration) -> Self {
        Self::Away(format!("no answer within {} s", limit.as_secs()))
    }

    /// Whether waiting helps.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        let Error::Database(said) = &error else {
            // Everything else that sqlx reports is about the connection, the pool, or a server that answers unlike itself.
            return Self::Away(without_values(&error));
        };
        let sqlstate = said.code().unwrap_or_default().into_owned();
        match sqlstate.get(..2) {
            Some("22" | "23") => Self::Data { sqlstate, message: said.message().to_owned() },
            Some("40") => Self::Repeat(sqlstate),
            // 08 connection, 25 read-only, 42 schema, 53 resources, 54 limits, 55 state, 57 shutdown, 58 system, XX internal:
            // none of them is the mail's fault, so none of them may cost a mail.
            _ => Self::Away(format!("{sqlstate} {}", said.message())),
        }
    }
}

/// Whose certificate is expected, and which settings say so.
pub(super) const DATABASE: Peer = Peer {
    who: "the database",
    host: "the host in DATABASE_URL",
    authorities: "a file that sslrootcert in DATABASE_URL names",
    own: Some("sslcert and sslkey in DATABASE_URL"),
    no_tls: "sslmode in DATABASE_URL asks for it",
};

/// Whether TLS is what went wrong.
pub(super) fn is_tls(error: &std::io::Error) -> bool {
    tls::words(error, &DATABASE).is_some()
}

/// sqlx's words for anything but a server error hold no values of ours.
fn without_values(error: &Error) -> String {
    match error {
        Error::PoolTimedOut => "no connection became free in time".to_owned(),
        Error::Io(io) => tls::words(io, &DATABASE).unwrap_or_else(|| error.to_string()),
        Error::Tls(why) => format!(
            "no TLS with the database: {why}; sslmode in DATABASE_URL asks for it, ssl = on in postgresql.conf offers it"
        ),
        other => other.to_string(),
    }
}
