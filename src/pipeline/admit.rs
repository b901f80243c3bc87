//! Stage 4: the request becomes rows, and a row is claimed for whoever has a place on a connection.
//!
//! Invariant: a claim is asked for only with a place in hand, and only while this daemon's lease is good.

use std::{sync::Arc, time::Duration};

use chrono::Utc;

use super::{
    Fate, Halt, Pipeline, message::Message, pending::Tries, render::Rendering, settlement::Settlement, traced,
};
use crate::{
    broker::Delivery,
    email::{EmailAddress, EmailRequest, Envelope, Lane, Recipient},
    faults::{self, Point},
    smtp::Place,
    store::{Admission, ClaimRequest, Standing, StoreHealth},
    telemetry::span::Span,
};

impl Pipeline {
    /// Whom a request went to when it was first claimed, where the template does not tell: a replay may use another version,
    /// which names others, and whoever was reopened must not wait for ever; and a version that this daemon cannot use names
    /// nobody.
    pub(super) async fn earlier_recipients(
        &self,
        delivery: &Delivery,
        request: &EmailRequest,
        rendering: &Rendering,
    ) -> Result<Vec<Recipient>, Halt> {
        let Envelope { lane, generation, .. } = delivery.envelope;
        if generation == 0 && (rendering.manifest().is_some() || !delivery.envelope.may_be_known()) {
            return Ok(Vec::new());
        }
        let rows = self.patiently(|| self.store.recipients_of(lane, request.id)).await?;
        let known = rows.into_iter().filter_map(|(email, display_name)| {
            // One that is no address is in the request itself.
            Some(Recipient { address: Ok(EmailAddress::parse(&email).ok()?), display_name })
        });
        Ok(known.collect())
    }

    /// Writes or finds all rows, and claims the first recipient that can be sent to. The inner error is how it ends here.
    pub(super) async fn admit_all(
        &self,
        message: &Message<'_>,
    ) -> Result<Result<(Vec<Standing>, Option<Place>), Settlement>, Halt> {
        let span = message.span.child("admit");
        let place = match message.first_sendable(Utc::now()) {
            None => None,
            Some(_) => Some(self.place_with_store(message, &span).await?),
        };
        // Waiting for a place may have taken until past the expiry.
        let now = Utc::now();
        let claimed = place.as_ref().and_then(|_| message.first_sendable(now));
        let everybody = 0..message.len();
        let asked = message.claim_request(
            everybody,
            claimed,
            &self.mail.message_id_domain,
            now,
            message.envelope.may_be_known(),
            true,
        );
        Ok(match self.claim(message, &asked, &span).await? {
            Admission::Known(standings) => Ok((standings, place)),
            Admission::OldCopy => Err(Settlement::Ack("duplicate")),
            Admission::Conflict { stored } => Err(Settlement::conflict(message.request, stored)),
        })
    }

    /// Claims one more recipient, with this place or another. The error is what becomes of it instead.
    pub(super) async fn admit_one(
        &self,
        message: &Message<'_>,
        index: usize,
        place: Option<Place>,
    ) -> Result<(Standing, Option<Place>), Fate> {
        // In the fast lane a copy waits for those who could not be claimed, and goes on without a database.
        let later = || Fate::Wait(Duration::ZERO, Tries::default());
        let halted = || if message.lane() == Lane::Fast { later() } else { Fate::HandBack };
        let span = message.span.child("admit");
        let place = match place {
            Some(place) => place,
            None => match self.place_with_store(message, &span).await {
                Ok(place) => place,
                Err(Halt::Stopped) => return Err(Fate::HandBack),
                Err(Halt::Away | Halt::Refused(_)) => return Err(halted()),
            },
        };
        let now = Utc::now();
        let asked = message.claim_request(index..=index, Some(index), &self.mail.message_id_domain, now, true, false);
        match self.claim(message, &asked, &span).await {
            Ok(Admission::Known(mut standings)) => match standings.pop() {
                Some(standing) => Ok((standing, Some(place))),
                None => Err(later()),
            },
            // The request was ours a moment ago; whatever this is, a later copy will see it whole.
            Ok(Admission::OldCopy | Admission::Conflict { .. }) | Err(Halt::Refused(_)) => Err(later()),
            Err(Halt::Stopped) => Err(Fate::HandBack),
            Err(Halt::Away) => Err(halted()),
        }
    }

    /// A place on a connection; nothing when the daemon stops first, an operator pauses the lane, or the delivery is somebody
    /// else's by now.
    pub(super) async fn place(&self, message: &Message<'_>, span: &Span) -> Option<Place> {
        let step = span.child("place");
        let place = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = message.gone.cancelled() => None,
            // Whoever has a place at once need not be told.
            place = self.relays.place(message.lane()) => Some(place),
            () = self.pauses.until_paused_by_operator(message.lane()) => None,
        };
        if let Some(opening) = place.as_ref().and_then(Place::opening) {
            traced::steps_of(&step, opening);
        }
        place
    }

    /// The same for as long as the store is there: a paused lane waits for no relay.
    async fn place_with_store(&self, message: &Message<'_>, span: &Span) -> Result<Place, Halt> {
        let mut health = self.store.health();
        tokio::select! {
            place = self.place(message, span) => place.ok_or(Halt::Stopped),
            _ = health.wait_for(|health| *health != StoreHealth::Up) => Err(Halt::Away),
        }
    }

    /// Asks the store for a claim.
    pub(super) async fn claim(
        &self,
        message: &Message<'_>,
        request: &Arc<ClaimRequest>,
        span: &Span,
    ) -> Result<Admission, Halt> {
        let step = span.make(|| traced::database("claim"));
        if !self.store.lease_is_good() {
            // Somebody else may think us gone: prove otherwise before touching anything.
            self.patiently(|| self.store.renew_lease()).await?;
        }
        let claimed = self.patiently(|| self.store.claim(request)).await;
        match &claimed {
            Ok(_) => faults::reached_by(Point::Claimed, message.request.id),
            // It may have been committed all the same, and is given up before a byte was sent.
            Err(_) => {
                step.fail("store");
                message.give_up(request);
            }
        }
        claimed
    }
}
