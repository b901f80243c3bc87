//! What the relay does instead of what it should, and when.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

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
    /// At the final dot: takes the mail, and never says so.
    AcceptThenStall,
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
    recipient: Option<Whom>,
    transaction: Option<usize>,
    times_left: usize,
    /// It happens at each n-th opportunity.
    every: usize,
    opportunities: usize,
    /// It happens to each recipient this often, and no more.
    for_each: Option<usize>,
    suffered: Suffered,
    /// It happens to what comes on top of this many a second.
    above: Option<usize>,
    let_off: Vec<Instant>,
    /// How often it has happened.
    pub(super) happened: usize,
}

/// How often each recipient had to suffer.
pub type Suffered = Arc<Mutex<HashMap<String, usize>>>;

#[derive(Debug, Clone)]
enum Whom {
    /// This address, or this local part.
    Named(String),
    /// Whose address begins so.
    Beginning(String),
}

impl Whom {
    fn is(&self, address: &str) -> bool {
        let address = address.to_ascii_lowercase();
        match self {
            Self::Named(wanted) => {
                address == *wanted || address.rsplit_once('@').is_some_and(|(local, _)| local == wanted)
            }
            Self::Beginning(start) => address.starts_with(start.as_str()),
        }
    }
}

impl Rule {
    /// At this step of every dialogue.
    pub fn at(phase: Phase, act: Act) -> Self {
        Self {
            phase,
            act,
            recipient: None,
            transaction: None,
            times_left: usize::MAX,
            every: 1,
            opportunities: 0,
            for_each: None,
            suffered: Suffered::default(),
            above: None,
            let_off: Vec::new(),
            happened: 0,
        }
    }

    /// Only for this address, or this local part.
    pub fn to(mut self, recipient: &str) -> Self {
        assert!(self.phase >= Phase::Rcpt, "before RCPT the relay does not know the recipient");
        self.recipient = Some(Whom::Named(recipient.to_ascii_lowercase()));
        self
    }

    /// Only for addresses that begin so.
    pub fn whose_address_begins(mut self, beginning: &str) -> Self {
        assert!(self.phase >= Phase::Rcpt, "before RCPT the relay does not know the recipient");
        self.recipient = Some(Whom::Beginning(beginning.to_ascii_lowercase()));
        self
    }

    /// Only at each n-th opportunity.
    pub fn every(mut self, n: usize) -> Self {
        self.every = n.max(1);
        self
    }

    /// Only this many times for each recipient.
    pub fn for_each(mut self, times: usize) -> Self {
        assert!(self.phase >= Phase::Rcpt, "before RCPT the relay does not know the recipient");
        self.for_each = Some(times);
        self
    }

    /// Only to what comes on top of this many a second: a relay that limits its senders.
    pub fn above(mut self, per_second: usize) -> Self {
        self.above = Some(per_second);
        self
    }

    /// What other rules of this group did to a recipient counts as well.
    pub fn among(mut self, group: &Suffered) -> Self {
        self.suffered = Arc::clone(group);
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
    rules.iter_mut().find_map(|rule| rule.apply(phase, recipient, transaction))
}

impl Rule {
    fn apply(&mut self, phase: Phase, recipient: Option<&str>, transaction: usize) -> Option<Act> {
        let fits = self.phase == phase
            && self.times_left > 0
            && self.transaction.is_none_or(|wanted| wanted == transaction)
            && self.recipient.as_ref().is_none_or(|whom| recipient.is_some_and(|address| whom.is(address)));
        if !fits {
            return None;
        }
        let mut suffered = self.suffered.lock().expect("no test panics here");
        if let Some(times) = self.for_each
            && suffered.get(recipient.unwrap_or_default()).is_some_and(|suffered| *suffered >= times)
        {
            return None;
        }
        if let Some(per_second) = self.above {
            self.let_off.retain(|at| at.elapsed() < Duration::from_secs(1));
            if self.let_off.len() < per_second {
                self.let_off.push(Instant::now());
                return None;
            }
        }
        self.opportunities += 1;
        if !self.opportunities.is_multiple_of(self.every) {
            return None;
        }
        if self.for_each.is_some() {
            *suffered.entry(recipient.unwrap_or_default().to_owned()).or_default() += 1;
        }
        self.times_left = self.times_left.saturating_sub(1);
        self.happened += 1;
        Some(self.act.clone())
    }
}
