//! Single-use tokens that stand for a registered request until its URL is fetched.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;

use crate::runtime::{AttachRequest, ExecRequest, PortForwardRequest};

/// How long a token is good for (CRI streaming server's cache TTL).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How many requests may wait at once.
const TOKENS_MAX: usize = 1000;
/// Random bytes of a token; 8 characters in base64url.
const TOKEN_BYTES: usize = 6;

/// A request that waits for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// `/exec/<token>`.
    Exec(ExecRequest),
    /// `/attach/<token>`.
    Attach(AttachRequest),
    /// `/portforward/<token>`.
    PortForward(PortForwardRequest),
}

/// Too many requests wait for their client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("maximum number of in-flight streaming requests ({TOKENS_MAX}) is reached; try again later")]
pub struct TooManyRequests;

/// The waiting requests.
#[derive(Default)]
pub(crate) struct Tokens {
    waiting: Mutex<HashMap<String, (Instant, Pending)>>,
}

impl Tokens {
    /// Keeps a request and returns its token.
    pub(crate) fn put(&self, pending: Pending, now: Instant) -> Result<String, TooManyRequests> {
        let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if waiting.len() >= TOKENS_MAX {
            waiting.retain(|_, (expires, _)| *expires > now);
        }
        if waiting.len() >= TOKENS_MAX {
            return Err(TooManyRequests);
        }
        loop {
            let mut random = [0u8; TOKEN_BYTES];
            rand::rng().fill_bytes(&mut random);
            let token = URL_SAFE_NO_PAD.encode(random);
            if !waiting.contains_key(&token) {
                waiting.insert(token.clone(), (now + TOKEN_LIFE, pending));
                return Ok(token);
            }
        }
    }

    /// Takes the request of a token, once, while it is good.
    pub(crate) fn take(&self, token: &str, now: Instant) -> Option<Pending> {
        let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (expires, pending) = waiting.remove(token)?;
        (expires > now).then_some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> Pending {
        Pending::PortForward(PortForwardRequest { sandbox_id: "s".into(), ports: vec![] })
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let first = tokens.put(forward(), now).unwrap();
        assert_eq!(first.len(), 8);
        assert_eq!(tokens.take(&first, now), Some(forward()));
        assert_eq!(tokens.take(&first, now), None);
        let late = tokens.put(forward(), now).unwrap();
        assert_eq!(tokens.take(&late, now + TOKEN_LIFE), None);
    }

    #[test]
    fn waiting_requests_are_bounded_and_old_ones_make_room() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..TOKENS_MAX {
            tokens.put(forward(), now).unwrap();
        }
        assert_eq!(tokens.put(forward(), now), Err(TooManyRequests));
        assert!(tokens.put(forward(), now + TOKEN_LIFE).is_ok());
    }
}
