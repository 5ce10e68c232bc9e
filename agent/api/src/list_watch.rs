//! List once, then watch for ever: the loop behind every cache of API objects.

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::client::{ApiError, REQUEST_DEADLINE, within};
use crate::pace::Chance;
use crate::retry::RetryDelay;

/// Objects per page of a list, as client-go asks.
const PAGE_SIZE: u32 = 500;
/// The server ends a watch after a random time of this range in seconds, so that the watches of many nodes spread.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;
/// How much longer than promised a silent watch is believed.
const WATCH_SLACK: Duration = Duration::from_secs(15);
/// A watch that ends sooner than this without an event counts as failed.
const WATCH_SHORTEST: Duration = Duration::from_secs(1);

/// What became known of the objects.
#[derive(Debug)]
pub enum Change<K> {
    /// The complete set: whatever isn't in it is gone.
    Listed(Vec<K>),
    /// An object is new or has changed.
    Applied(K),
    /// An object is gone; its last state.
    Deleted(K),
    /// A try failed; another follows. What was known stays true as far as anybody can tell.
    Failed(ApiError),
}

/// What the handler of changes wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// No further changes are wanted.
    Stop,
}

/// How a watch ended.
enum WatchEnd {
    Over,
    Expired,
    Stopped,
    Failed(ApiError),
}

/// Follows the objects of `api` that match `field_selector` until `handle` says stop or the future is dropped.
/// Lists again when the server has forgotten the version (410), watches again when a watch ends, waits between 0.1 s
/// and 30 s after failures.
pub async fn follow<K>(
    what: &str,
    api: Api<K>,
    field_selector: Option<&str>,
    chance: &Chance,
    mut handle: impl FnMut(Change<K>) -> Next,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut delay = RetryDelay::drawn_by(chance, Duration::from_millis(200), Duration::from_secs(30));
    'list: loop {
        let mut version = match list(what, &api, field_selector).await {
            Ok((objects, version)) => {
                delay.reset();
                if handle(Change::Listed(objects)) == Next::Stop {
                    return;
                }
                version
            }
            Err(error) => {
                if handle(Change::Failed(error)) == Next::Stop {
                    return;
                }
                tokio::time::sleep(delay.next_delay()).await;
                continue;
            }
        };
        loop {
            let (started, before) = (Instant::now(), version.clone());
            let seconds =
                WATCH_SECONDS.start + ((chance)() * f64::from(WATCH_SECONDS.end - WATCH_SECONDS.start)) as u32;
            match watch(what, &api, field_selector, seconds, &mut version, &mut handle).await {
                WatchEnd::Stopped => return,
                WatchEnd::Expired => continue 'list,
                WatchEnd::Over if started.elapsed() > WATCH_SHORTEST || version != before => delay.reset(),
                WatchEnd::Over => tokio::time::sleep(delay.next_delay()).await,
                WatchEnd::Failed(error) => {
                    if version != before {
                        delay.reset();
                    }
                    if handle(Change::Failed(error)) == Next::Stop {
                        return;
                    }
                    tokio::time::sleep(delay.next_delay()).await;
                }
            }
        }
    }
}

/// The complete list, page by page, and its version.
async fn list<K>(what: &str, api: &Api<K>, field_selector: Option<&str>) -> Result<(Vec<K>, String), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let what = format!("list {what}");
    let mut params = ListParams::default().limit(PAGE_SIZE);
    params.field_selector = field_selector.map(str::to_owned);
    let mut objects = Vec::new();
    loop {
        let page = within(&what, REQUEST_DEADLINE, api.list(&params)).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok((objects, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}

/// One watch from `version` on, which moves along; the server ends it after `seconds`.
async fn watch<K>(
    what: &str,
    api: &Api<K>,
    field_selector: Option<&str>,
    seconds: u32,
    version: &mut String,
    handle: &mut impl FnMut(Change<K>) -> Next,
) -> WatchEnd
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let what = format!("watch {what}");
    let params = WatchParams {
        timeout: Some(seconds),
        field_selector: field_selector.map(str::to_owned),
        ..WatchParams::default()
    };
    let stream = match within(&what, REQUEST_DEADLINE, api.watch(&params, version)).await {
        Ok(stream) => stream,
        Err(error) if error.code() == Some(410) => return WatchEnd::Expired,
        Err(error) => return WatchEnd::Failed(error),
    };
    let mut stream = std::pin::pin!(stream.into_stream());
    let deadline = Instant::now() + Duration::from_secs(u64::from(seconds)) + WATCH_SLACK;
    loop {
        let event = match tokio::time::timeout_at(deadline, stream.next()).await {
            Err(_) => return WatchEnd::Failed(ApiError::Deadline { what, seconds: u64::from(seconds) }),
            Ok(None) => return WatchEnd::Over,
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(source))) => {
                let error = ApiError::Request { what, source };
                return if error.code() == Some(410) { WatchEnd::Expired } else { WatchEnd::Failed(error) };
            }
        };
        let change = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Applied(object),
            WatchEvent::Deleted(object) => Change::Deleted(object),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => return WatchEnd::Expired,
            WatchEvent::Error(status) => {
                return WatchEnd::Failed(ApiError::Request { what, source: kube::Error::Api(status) });
            }
        };
        if let Change::Applied(object) | Change::Deleted(object) = &change {
            *version = object.resource_version().unwrap_or_else(|| version.clone());
        }
        if handle(change) == Next::Stop {
            return WatchEnd::Stopped;
        }
    }
}
