//! Tokens that were tried in vain, by the API and at the sign-in page together: who must wait before trying another one.
//!
//! | who | what limits them |
//! |---|---|
//! | an address with ten wrong tokens a minute | it waits, also with a right token: or whoever guesses would know it by that |
//! | addresses that nobody has shown a right token from in the last day, a hundred wrong tokens a minute together | they wait |
//! | a right token, from an address that it was used from in the last day | nothing |
//! | a signed-in browser | nothing: its cookie is 244 random bits, and is not counted |
//!
//! So nobody is shut out by what others do, but for one case: somebody who has not been at this daemon from that address for a day
//! waits for up to a minute while others guess from the same address, or a hundred times a minute from anywhere. An address is an
//! IPv4 address or an IPv6 /64. In return, whoever shares an address with an operator is told by a 401 that was none which of
//! their guesses was right; with the sixteen characters that a token has at least, drawn at random, that helps nobody.
//!
//! Invariant: memory is bounded: no address is counted that must wait, and right tokens are remembered up to a number.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{auth::identify, client::one_of};
use crate::config::AdminToken;

/// Wrong tokens of one address, before it must wait.
const WRONG_MAX: u32 = 10;
/// And of all addresses together.
const WRONG_OF_ALL_MAX: u32 = 100;
/// How long they count.
const WRONG_COUNT_FOR: Duration = Duration::from_secs(60);
/// How long a right token is remembered with its address.
const RIGHT_COUNT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Right tokens that are remembered, with their addresses; the oldest gives way.
const RIGHT_MAX: usize = 1000;

/// What a token came to.
#[derive(Debug)]
pub(super) enum Tried<'a> {
    /// It is this one.
    Right(&'a AdminToken),
    /// It is none of them.
    Wrong,
    /// Nobody looks at it for so long.
    Wait(Duration),
}

/// What was tried.
#[derive(Debug, Default)]
pub struct Tries(Mutex<Memory>);

#[derive(Debug)]
struct Memory {
    since: Instant,
    of_all: u32,
    of: HashMap<IpAddr, u32>,
    /// By address and the token's name.
    right: HashMap<(IpAddr, String), Instant>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { since: Instant::now(), of_all: 0, of: HashMap::new(), right: HashMap::new() }
    }
}

impl Tries {
    /// Whose token this is, unless its address must wait.
    pub(super) fn attempt<'a>(&self, known: &'a [AdminToken], given: &str, from: IpAddr, now: Instant) -> Tried<'a> {
        // Always, so that the time it takes does not tell whether anybody looked.
        let found = identify(known, given);
        let from = one_of(from);
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.forget(now);
        let was_right = found.is_some_and(|token| memory.right.contains_key(&(from, token.name.clone())));
        match found {
            Some(token) if was_right || !memory.must_wait(from) => {
                memory.note_right(from, token, now);
                Tried::Right(token)
            }
            _ if memory.must_wait(from) => {
                Tried::Wait(WRONG_COUNT_FOR.saturating_sub(now.duration_since(memory.since)))
            }
            _ => {
                if memory.of_all == 0 {
                    memory.since = now;
                }
                memory.of_all += 1;
                *memory.of.entry(from).or_default() += 1;
                Tried::Wrong
            }
        }
    }
}

impl Memory {
    fn forget(&mut self, now: Instant) {
        if now.duration_since(self.since) >= WRONG_COUNT_FOR {
            (self.since, self.of_all) = (now, 0);
            self.of.clear();
            self.right.retain(|_, at| now.duration_since(*at) < RIGHT_COUNT_FOR);
        }
    }

    fn must_wait(&self, from: IpAddr) -> bool {
        self.of.get(&from).is_some_and(|count| *count >= WRONG_MAX)
            || (self.of_all >= WRONG_OF_ALL_MAX && !self.right.keys().any(|(address, _)| *address == from))
    }

    fn note_right(&mut self, from: IpAddr, token: &AdminToken, now: Instant) {
        self.right.insert((from, token.name.clone()), now);
        if self.right.len() > RIGHT_MAX {
            let oldest = self.right.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.right.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::config::Role;

    const RIGHT: &str = "a-token-of-these-tests";
    const OTHER: &str = "another-token-of-these-tests";

    fn known() -> Vec<AdminToken> {
        let token = |name: &str, token: &str| AdminToken {
            name: name.to_owned(),
            role: Role::Operator,
            token: SecretString::from(token.to_owned()),
        };
        vec![token("ada", RIGHT), token("grace", OTHER)]
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn is_right(tried: &Tried<'_>) -> bool {
        matches!(tried, Tried::Right(_))
    }

    #[test]
    fn an_address_that_guesses_must_wait_and_others_need_not() {
        let (tries, known, now) = (Tries::default(), known(), Instant::now());
        for _ in 0..WRONG_MAX {
            assert!(matches!(tries.attempt(&known, "wrong", address(1), now), Tried::Wrong));
        }
        let waits = |tried: Tried<'_>| matches!(tried, Tried::Wait(wait) if wait <= WRONG_COUNT_FOR);
        assert!(waits(tries.attempt(&known, "wrong", address(1), now)));
        assert!(waits(tries.attempt(&known, RIGHT, address(1), now)), "or whoever guesses would know it by that");
        assert!(is_right(&tries.attempt(&known, RIGHT, address(2), now)));
        let later = now + WRONG_COUNT_FOR;
        assert!(is_right(&tries.attempt(&known, RIGHT, address(1), later)));
    }

    #[test]
    fn an_operator_is_not_shut_out_by_who_guesses_from_the_same_address() {
        let (tries, known, now) = (Tries::default(), known(), Instant::now());
        assert!(is_right(&tries.attempt(&known, RIGHT, address(1), now)));
        for _ in 0..1000 {
            assert!(!is_right(&tries.attempt(&known, "wrong", address(1), now)));
        }
        assert!(is_right(&tries.attempt(&known, RIGHT, address(1), now)));
        assert!(!is_right(&tries.attempt(&known, OTHER, address(1), now)), "that one was never used from there");
    }

    #[test]
    fn an_operator_is_not_shut_out_by_who_guesses_from_everywhere() {
        let (tries, known, now) = (Tries::default(), known(), Instant::now());
        assert!(is_right(&tries.attempt(&known, RIGHT, address(0), now)));
        for n in 1..=100_000 {
            assert!(!is_right(&tries.attempt(&known, "wrong", address(n), now)));
        }
        assert!(is_right(&tries.attempt(&known, RIGHT, address(0), now)));
        assert!(is_right(&tries.attempt(&known, OTHER, address(0), now)), "a known address has its own limit only");
        assert!(matches!(tries.attempt(&known, RIGHT, address(200_000), now), Tried::Wait(_)), "a new one waits");
        let memory = tries.0.lock().expect("no test panics here");
        assert!(memory.of.len() <= WRONG_OF_ALL_MAX as usize, "{} addresses are remembered", memory.of.len());
    }

    #[test]
    fn right_tokens_are_remembered_up_to_a_number() {
        let (tries, known, now) = (Tries::default(), known(), Instant::now());
        for n in 0..2 * u32::try_from(RIGHT_MAX).expect("small") {
            let now = now + Duration::from_millis(n.into());
            assert!(is_right(&tries.attempt(&known, RIGHT, address(n), now)));
        }
        let memory = tries.0.lock().expect("no test panics here");
        assert_eq!(memory.right.len(), RIGHT_MAX);
        assert!(!memory.right.contains_key(&(address(0), "ada".to_owned())));
    }
}
