//! People who take themselves off marketing mail.
//!
//! Invariant: it is done by the hash of the address alone, so that a link works when the mail's row is anonymised or gone; and
//! doing it twice changes nothing.

use sqlx::Acquire;

use super::{
    Store, StoreError,
    suppressions::{NewSuppression, Written, suppress_in},
    whole::Whole,
    within,
};
use crate::email::{EmailAddress, SuppressionReason, Unsubscription};

/// How long a person, or a mail provider, waits for the answer.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The `source` of what a mail provider posted for the person (RFC 8058).
pub const BY_ONE_CLICK: &str = "one-click";
/// The `source` of what the person pressed on the page.
pub const BY_PAGE: &str = "page";

impl Store {
    /// Puts somebody on the suppression list, for a category of marketing mails or, without one, for all of them; and tells
    /// it in the timeline of the mail that held the link, once.
    ///
    /// # Errors
    /// When the database is away: nothing was changed, or it is done when asked for again.
    pub async fn unsubscribe(
        &self,
        told: &Unsubscription,
        category: Option<&str>,
        source: &str,
    ) -> Result<Written, StoreError> {
        within(LIMIT, async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            let row = sqlx::query!(
                "select recipient_email from email_messages where id = $1 and recipient_hash = $2",
                told.message_id,
                told.address_hash.as_slice()
            )
            .fetch_optional(&mut *tx)
            .await?;
            // What anonymising left in its place is nobody's address.
            let address = row.as_ref().and_then(|row| EmailAddress::parse(row.recipient_email.as_deref()?).ok());
            let address = address.filter(|address| self.address_hash(&address.key()) == told.address_hash);
            let entry = NewSuppression {
                category: category.map(str::to_owned),
                ..NewSuppression::new(
                    told.address_hash,
                    address.map(|address| address.as_str().to_owned()),
                    SuppressionReason::Unsubscribe,
                    source.to_owned(),
                )
            };
            let written = suppress_in(&mut tx, &[entry]).await?;
            if row.is_some() && written.unchanged == 0 {
                sqlx::query!(
                    "insert into email_timeline (message_id, kind, attempt, error) values ($1, 'unsubscribed', 0, $2)",
                    told.message_id,
                    format!("{} ({source})", category.unwrap_or("everything"))
                )
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await?;
            whole.end();
            Ok(written)
        })
        .await
    }
}
