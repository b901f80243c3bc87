//! What the relay does instead of what it should, and when.

use std::time::Duration;

use postrider::email::Phase;

/// A misdeed.
#[derive(Debug, Clone)]
pub enum Act {
    /// Says this, and means it: a 4xx or 5xx refuses the step.
    Reply(String),
    /// Writes these bytes instead of the reply, and goes by the code they begin with; without one, as if it had behaved.
    Bytes(Vec<u8>),
    /// Writes these bytes, then nothing more.
    BytesThenStall(Vec<u8>),
    /// Says nothing more; waits until the other side hangs up.
    Stall,
    /// Hangs up. At the content: after its first bytes. At the final dot: without having taken the mail.
    Disconnect,
    /// At the final dot: takes the mail, and hangs up without saying so.
    AcceptThenDisconnect,
    /// Says what it should, but this much later.
    Delay(Duration),
}

impl Act {
    /// [`Act::Reply`] from a literal.
    pub fn reply(text: &str) -> Self {
        Self::Reply(text.to_owned())
    }

    /// [`Act::Bytes`] from a literal.
    pub fn bytes(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// A misdeed, the step it happens at, and to whom.
#[derive(Debug, Clone)]
pub struct Rule {
    phase: Phase,
    act: Act,
    recipient: Option<String>,
    transaction: Option<usize>,
    times_left: usize,
}

impl Rule {
    /// At this step of every dialogue.
    pub fn at(phase: Phase, act: Act) -> Self {
        Self { phase, act, recipient: None, transaction: None, times_left: usize::MAX }
    }

    /// Only for this address, or this local part.
    pub fn to(mut self, recipient: &str) -> Self {
        assert!(self.phase >= Phase::Rcpt, "before RCPT the relay does not know the recipient");
        self.recipient = Some(recipient.to_ascii_lowercase());
        self
    }

    /// Only in the relay's n-th transaction (counted by MAIL, from 1).
    pub fn nth(mut self, transaction: usize) -> Self {
        assert!(self.phase >= Phase::Mail, "before MAIL there is no transaction");
        self.transaction = Some(transaction);
        self
    }

    /// Only this many times.
    pub fn times(mut self, times: usize) -> Self {
        self.times_left = times;
        self
    }

    /// Only once.
    pub fn once(self) -> Self {
        self.times(1)
    }
}

/// The first rule that applies here, used up by one.
pub(super) fn next_act(rules: &mut [Rule], phase: Phase, recipient: Option<&str>, transaction: usize) -> Option<Act> {
    let rule = rules.iter_mut().find(|rule| {
        rule.phase == phase
            && rule.times_left > 0
            && rule.transaction.is_none_or(|wanted| wanted == transaction)
            && rule.recipient.as_deref().is_none_or(|wanted| {
                recipient.is_some_and(|got| {
                    got.eq_ignore_ascii_case(wanted)
                        || got.rsplit_once('@').is_some_and(|(local, _)| local.eq_ignore_ascii_case(wanted))
                })
            })
    })?;
    rule.times_left = rule.times_left.saturating_sub(1);
    Some(rule.act.clone())
}
