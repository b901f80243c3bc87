//! Bearer tokens: who asks, and what they may do.
//!
//! Invariant: tokens are compared in constant time, and all of them every time: how long it takes tells nothing.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, header, request::Parts},
};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{ADMIN, Admin, client::Client, listener::Refused, problem::Problem, tries::Tried};
use crate::config::{AdminToken, Role};

/// Somebody with a token.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The token's name.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

impl Operator {
    /// As it is noted who did something.
    #[must_use]
    pub fn by(&self) -> String {
        format!("operator:{}", self.name)
    }

    /// Asks for a role.
    ///
    /// # Errors
    /// 403, naming the role that is needed.
    pub fn needs(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        Err(Problem::new(StatusCode::FORBIDDEN, format!("this needs a token with the role {}", role.name())))
    }
}

impl FromRequestParts<Arc<Admin>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Self, Problem> {
        let given = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let refused =
            || Problem::new(StatusCode::UNAUTHORIZED, "send `Authorization: Bearer <token>` with one of ADMIN_TOKENS");
        // Whoever shows none guesses none.
        let given = given.filter(|token| !token.is_empty()).ok_or_else(refused)?;
        let client = parts.extensions.get::<Client>().copied().unwrap_or_default();
        match admin.tries.attempt(&admin.http.tokens, given, client.address, Instant::now()) {
            Tried::Right(token) => Ok(Self { name: token.name.clone(), role: token.role }),
            Tried::Wrong => {
                admin.metrics.http_refused(ADMIN, Refused::WrongToken);
                Err(refused())
            }
            Tried::Wait(wait) => {
                admin.metrics.http_refused(ADMIN, Refused::TooManyTries);
                let seconds = wait.as_secs() + 1;
                let words =
                    format!("too many wrong tokens came from this address, or from all: try again in {seconds} s");
                Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, words).retry_after(seconds))
            }
        }
    }
}

/// Whose token this is.
pub(super) fn identify<'a>(known: &'a [AdminToken], given: &str) -> Option<&'a AdminToken> {
    // Digests have one length, so neither does the length of a token tell anything.
    let given = Sha256::digest(given);
    let mut found = None;
    for token in known {
        let expected = Sha256::digest(token.token.expose_secret());
        if bool::from(given.ct_eq(&expected)) {
            found = Some(token);
        }
    }
    found
}
