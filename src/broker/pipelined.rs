//! Confirmed publishing of many small messages over one channel, in order, for an exchange that may have no bindings.
//!
//! Invariant: a mandatory message travels alone. lapin may attach a returned message to another's confirmation, so whether a key
//! is bound is asked with nothing else under way on the channel.
//! Invariant: after an error the channel is not used again, so that no late confirmation counts for another message.

use std::{collections::VecDeque, sync::Arc};

use lapin::{
    Channel, Confirmation, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use super::{BrokerError, Link, Outgoing, Topology, publisher::answered};

/// Messages under way at once: enough to keep the broker busy, few enough to be repeated.
const WINDOW: usize = 256;

/// One channel over a connection that publishes.
pub struct PipelinedPublisher {
    link: Arc<Link>,
    topology: Topology,
    channel: Option<Channel>,
    under_way: VecDeque<(i64, PublisherConfirm)>,
}

impl PipelinedPublisher {
    /// Publishes over this connection; nothing is opened yet.
    #[must_use]
    pub const fn new(link: Arc<Link>, topology: Topology) -> Self {
        Self { link, topology, channel: None, under_way: VecDeque::new() }
    }

    /// Sees that there is a channel, and waits for the broker as long as it takes. Cancel-safe.
    ///
    /// # Errors
    /// When the broker goes away again.
    pub async fn open(&mut self) -> Result<(), BrokerError> {
        if self.channel.as_ref().is_some_and(|channel| channel.status().connected()) {
            return Ok(());
        }
        self.reset();
        let channel = self.link.get().await.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.channel = Some(channel);
        Ok(())
    }

    /// Publishes one message alone, and says whether a queue took it. What was under way is confirmed first, into `confirmed`.
    ///
    /// # Errors
    /// When the broker is away, or refuses a message; [`Self::reset`] is due then.
    pub async fn probe(&mut self, message: &Outgoing, confirmed: &mut Vec<i64>) -> Result<bool, BrokerError> {
        self.settle(confirmed).await?;
        let confirmation = self.send(message, true).await?;
        match self.answer(confirmation).await? {
            Confirmation::Ack(returned) => Ok(returned.is_none()),
            refused => Err(refusal(&refused, message)),
        }
    }

    /// Publishes a message whose key is bound, without waiting for it; the numbers of those that are confirmed meanwhile are
    /// added to `confirmed`. Should the binding go at this moment, the message is dropped, as it would be a moment later.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub async fn push(&mut self, number: i64, message: &Outgoing, confirmed: &mut Vec<i64>) -> Result<(), BrokerError> {
        let confirmation = self.send(message, false).await?;
        self.under_way.push_back((number, confirmation));
        self.settle_down_to(WINDOW, confirmed).await
    }

    /// Waits until everything is confirmed.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub async fn settle(&mut self, confirmed: &mut Vec<i64>) -> Result<(), BrokerError> {
        self.settle_down_to(0, confirmed).await
    }

    /// Lets the channel go, with whatever is under way on it.
    pub fn reset(&mut self) {
        self.under_way.clear();
        self.channel = None;
    }

    /// Declares an exchange again that was found missing.
    ///
    /// # Errors
    /// When the broker is away, or the exchange may not be declared.
    pub async fn restore(&self, exchange: &str) -> Result<(), BrokerError> {
        let connection = self.link.get().await;
        self.topology.restore_exchange(&connection, exchange).await
    }

    async fn send(&self, message: &Outgoing, mandatory: bool) -> Result<PublisherConfirm, BrokerError> {
        let gone = || BrokerError::NotTaken("the channel is gone".to_owned());
        let channel = self.channel.as_ref().ok_or_else(gone)?;
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
        Ok(channel.basic_publish(exchange, key, options, &message.body, message.properties.clone()).await?)
    }

    async fn answer(&self, confirmation: PublisherConfirm) -> Result<Confirmation, BrokerError> {
        match &self.channel {
            Some(channel) => answered(channel, confirmation).await,
            None => Ok(confirmation.await?),
        }
    }

    async fn settle_down_to(&mut self, left: usize, confirmed: &mut Vec<i64>) -> Result<(), BrokerError> {
        while self.under_way.len() > left {
            let Some((number, confirmation)) = self.under_way.pop_front() else { break };
            match self.answer(confirmation).await? {
                Confirmation::Ack(_) => confirmed.push(number),
                Confirmation::Nack(_) => {
                    return Err(BrokerError::NotTaken("refused: a queue is full or failing".to_owned()));
                }
                Confirmation::NotRequested => {
                    return Err(BrokerError::NotTaken("the channel does not confirm".to_owned()));
                }
            }
        }
        Ok(())
    }
}

fn refusal(confirmation: &Confirmation, message: &Outgoing) -> BrokerError {
    match confirmation {
        Confirmation::NotRequested => BrokerError::NotTaken("the channel does not confirm".to_owned()),
        _ => BrokerError::NotTaken(format!(
            "refused: a queue that is bound to {} for {} is full or failing",
            message.exchange, message.routing_key
        )),
    }
}
