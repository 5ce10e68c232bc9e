//! Parts of the agent that end by themselves are started again.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::error;

/// Waiting times before a part is started again.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LONGEST: Duration = Duration::from_secs(30);
/// A part that has worked for so long has its waiting time forgotten.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// Runs a part until cancelled. When it ends or panics before that, it is started again after a while.
pub(crate) async fn supervise<F>(what: &'static str, cancel: CancellationToken, mut start: impl FnMut() -> F)
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut delay = RESTART_FIRST;
    while !cancel.is_cancelled() {
        let started = Instant::now();
        let result = tokio::spawn(start()).await;
        if cancel.is_cancelled() {
            return;
        }
        match result {
            Ok(Ok(())) => error!(part = what, "a part of the agent has ended; it is started again"),
            Ok(Err(why)) => error!(part = what, %why, "a part of the agent has failed; it is started again"),
            Err(panic) => error!(part = what, %panic, "a part of the agent has crashed; it is started again"),
        }
        if started.elapsed() > SETTLED_AFTER {
            delay = RESTART_FIRST;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(RESTART_LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn parts_are_started_again_until_cancelled() {
        let (cancel, starts) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let (token, counter) = (cancel.clone(), starts.clone());
        let part = move || {
            let (token, count) = (token.clone(), counter.fetch_add(1, Ordering::SeqCst));
            async move {
                match count {
                    0 => Err("first".to_owned()),
                    1 => panic!("second"),
                    _ => {
                        token.cancel();
                        token.cancelled().await;
                        Ok(())
                    }
                }
            }
        };
        supervise("test", cancel, part).await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
    }
}
