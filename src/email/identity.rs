//! The identity of one mail: the same on every daemon and at every try, whether or not a database can be asked.
//!
//! Invariant: it follows from the message alone (its publish time, its request's id, the recipient's keyed hash), so a mail
//! that is sent again from one message, by whomever, goes out under the same Message-ID. A request that its producer publishes
//! again is another message: the database knows it for the same and keeps the first identity, and who has no database cannot.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The id of a recipient's row, from which its Message-ID is made.
///
/// A UUID of version 8 (RFC 9562 §5.8): the publish time in milliseconds as in version 7, so that rows of one time lie
/// together in an index, then 74 bits of a hash instead of chance.
#[must_use]
pub fn row_id(published_at: DateTime<Utc>, request_id: Uuid, recipient_hash: &[u8; 32]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(request_id.as_bytes());
    hash.update(recipient_hash);
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&published_at.timestamp_millis().max(0).to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&digest[..10]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The least id of a mail that was published at or after this time, to the millisecond.
#[must_use]
pub fn first_row_id(published_at: DateTime<Utc>) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&published_at.timestamp_millis().max(0).to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

/// When the mail of this row was published, to the millisecond.
#[must_use]
pub fn published_at(row_id: Uuid) -> Option<DateTime<Utc>> {
    let mut milliseconds = [0; 8];
    milliseconds[2..].copy_from_slice(&row_id.as_bytes()[..6]);
    DateTime::from_timestamp_millis(i64::from_be_bytes(milliseconds))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn one_recipient_of_one_request_has_one_identity_and_nobody_elses() {
        let at = DateTime::from_timestamp(1_790_000_000, 0).expect("a time");
        let request = Uuid::from_u128(1);
        let id = row_id(at, request, &[1; 32]);
        assert_eq!(id, row_id(at, request, &[1; 32]));
        assert_ne!(id, row_id(at, request, &[2; 32]));
        assert_ne!(id, row_id(at, Uuid::from_u128(2), &[1; 32]));
        assert_eq!(id.get_version_num(), 8);
        assert!(id < row_id(at + TimeDelta::milliseconds(1), request, &[1; 32]), "in the order of their time");
        assert_eq!(published_at(id), Some(at));
        assert!(first_row_id(at) < id && id < first_row_id(at + TimeDelta::milliseconds(1)));
    }
}
