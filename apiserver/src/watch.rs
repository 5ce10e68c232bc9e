//! Watches: the present first if asked for, then every change that the selector sees, bookmarks in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::registry::Resource;
use crate::rest::address::Address;
use crate::rest::answer::{self, Accept, Body, Shape};
use crate::rest::query::Query;
use crate::rest::read_page;
use crate::rest::selector::Selector;
use crate::storage::{Change, ChangeKind, Next, Range};
use crate::table;

/// Time between bookmarks (the watch cache of kube-apiserver: about a minute).
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// Shortest time that a watch lasts when the client names none (`--min-request-timeout`); up to twice that.
const LIFE_SECONDS_MIN: u64 = 1800;
/// Longest time that a client may name, in seconds.
const LIFE_SECONDS_MAX: i64 = 24 * 3600;
/// Annotation of the bookmark that ends the present.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

struct Watch {
    api: Arc<Api>,
    resource: &'static Resource,
    namespace: String,
    selector: Selector,
    shape: Shape,
    cursor: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    end: Instant,
    changed: tokio::sync::watch::Receiver<u64>,
    ready: VecDeque<Bytes>,
    columns_sent: bool,
    over: bool,
}

/// Answers a watch.
///
/// # Errors
/// 400 for parameters that can't be; what is too old is told inside the stream, as kube-apiserver does.
pub fn answer(api: &Arc<Api>, address: &Address, query: &Query, accept: Accept) -> Result<Response<Body>, ApiError> {
    let resource = address.resource;
    let mut fields = query.get("fieldSelector").to_string();
    if !address.name.is_empty() {
        let separator = if fields.is_empty() { "" } else { "," };
        fields = format!("{fields}{separator}metadata.name={}", address.name);
    }
    let selector = Selector::parse(resource, query.get("labelSelector"), &fields)?;
    let revision = query
        .revision("resourceVersion")
        .map_err(|error| ApiError::unforeseen(error.message.trim_start_matches("invalid resource version: ")))?;
    let initial = initial_events(query, revision)?;
    let seconds = match query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds.min(LIFE_SECONDS_MAX).unsigned_abs(),
        _ => rand::rng().random_range(LIFE_SECONDS_MIN..LIFE_SECONDS_MIN * 2),
    };
    let now = Instant::now();
    let mut watch = Watch {
        api: api.clone(),
        resource,
        namespace: address.namespace.clone(),
        selector,
        shape: accept.shape,
        cursor: revision.unwrap_or(0),
        bookmarks: query.flag("allowWatchBookmarks"),
        next_bookmark: now + BOOKMARK_PERIOD,
        end: now + Duration::from_secs(seconds),
        changed: api.store.subscribe(resource),
        ready: VecDeque::new(),
        columns_sent: false,
        over: false,
    };
    match initial {
        Initial::None => {}
        Initial::Newest => watch.cursor = api.store.revision(),
        Initial::Present { end_mark } => watch.send_present(end_mark)?,
    }
    let frames = futures::stream::unfold(watch, |mut watch| async move {
        let bytes = watch.next().await?;
        Some((Ok(Frame::data(bytes)), watch))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What comes before the changes.
enum Initial {
    /// Nothing: the client has it.
    None,
    /// Nothing: the client wants only what is new.
    Newest,
    /// The present.
    Present { end_mark: bool },
}

fn initial_events(query: &Query, revision: Option<u64>) -> Result<Initial, ApiError> {
    let (matching, field) = (query.get("resourceVersionMatch"), "resourceVersionMatch");
    let refuse = |errors: &[FieldError]| {
        Err(ApiError::invalid_kind("ListOptions.meta.k8s.io", "meta.k8s.io", "ListOptions", "", errors))
    };
    match query.get("sendInitialEvents") {
        "" if !matching.is_empty() => {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            refuse(&[FieldError::forbidden(field, why)])
        }
        "" if revision.unwrap_or(0) == 0 => Ok(Initial::Present { end_mark: false }),
        "" => Ok(Initial::None),
        _ if matching != "NotOlderThan" => {
            let why =
                FieldError::forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            let other = (!matching.is_empty()).then(|| FieldError::unsupported(field, matching, &["NotOlderThan"]));
            refuse(&[Some(why), other].into_iter().flatten().collect::<Vec<_>>())
        }
        "true" => Ok(Initial::Present { end_mark: true }),
        _ if revision.unwrap_or(0) == 0 => Ok(Initial::Newest),
        _ => Ok(Initial::None),
    }
}

impl Watch {
    fn send_present(&mut self, end_mark: bool) -> Result<(), ApiError> {
        let namespace = Some(self.namespace.clone()).filter(|name| !name.is_empty());
        let range = Range { namespace, ..Range::default() };
        let page = read_page(&self.api, self.resource, &range, usize::MAX, &self.selector)?;
        self.cursor = page.revision;
        for item in page.items {
            let line = self.line("ADDED", &item.json);
            self.ready.push_back(line);
        }
        if end_mark && self.bookmarks {
            let line = self.bookmark(true);
            self.ready.push_back(line);
        }
        Ok(())
    }

    /// The next line; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over || self.api.cancel.is_cancelled() {
                return None;
            }
            // Read before the changes, so that a bookmark never names more than has been sent.
            let published = self.api.store.revision();
            self.changed.borrow_and_update();
            self.take_changes();
            if !self.ready.is_empty() {
                continue;
            }
            self.cursor = self.cursor.max(published);
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            if self.bookmarks && now >= self.next_bookmark {
                self.next_bookmark = now + BOOKMARK_PERIOD;
                return Some(self.bookmark(false));
            }
            let wake = if self.bookmarks { self.end.min(self.next_bookmark) } else { self.end };
            tokio::select! {
                changed = self.changed.changed() => self.over = changed.is_err(),
                () = tokio::time::sleep_until(wake) => {}
                () = self.api.cancel.cancelled() => self.over = true,
            }
        }
    }

    fn take_changes(&mut self) {
        match self.api.store.changes_after(self.resource, self.cursor) {
            Next::Changes(changes) => {
                for change in changes {
                    self.cursor = change.revision;
                    if let Some((kind, json)) = self.seen(&change) {
                        let line = self.line(kind, json);
                        self.ready.push_back(line);
                    }
                }
            }
            Next::TooOld => {
                let error = ApiError::expired(format!(
                    "too old resource version: {} ({})",
                    self.cursor,
                    self.api.store.revision()
                ));
                self.ready.push_back(encode("ERROR", &error.status()));
                self.over = true;
            }
        }
    }

    /// How the selector sees a change: an object may come into view or leave it.
    fn seen<'a>(&self, change: &'a Change) -> Option<(&'static str, &'a Bytes)> {
        if !self.namespace.is_empty() && change.selectable.namespace != self.namespace {
            return None;
        }
        let now = self.selector.matches(&change.selectable);
        let before = match &change.before {
            Some((selectable, _)) => self.selector.matches(selectable),
            None => now,
        };
        match (change.kind, before, now) {
            (ChangeKind::Added, _, true) => Some(("ADDED", &change.json)),
            (ChangeKind::Deleted, _, true) => Some(("DELETED", &change.json)),
            (ChangeKind::Modified, true, true) => Some(("MODIFIED", &change.json)),
            (ChangeKind::Modified, false, true) => Some(("ADDED", &change.json)),
            (ChangeKind::Modified, true, false) => Some(("DELETED", change.left())),
            _ => None,
        }
    }

    fn line(&mut self, kind: &str, json: &Bytes) -> Bytes {
        if self.shape == Shape::Full && self.resource.group != "events.k8s.io" {
            let object = answer::with_kind(self.resource, json);
            let mut out = Vec::with_capacity(object.len() + 40);
            out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
            out.extend_from_slice(&object);
            out.extend_from_slice(b"}\n");
            return Bytes::from(out);
        }
        let object: Value = serde_json::from_slice(json).unwrap_or_default();
        let shown = match self.shape {
            Shape::Table(include) => {
                let metadata = json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                table::render(self.resource, &[object], include, &metadata, columns)
            }
            shape => answer::shaped(self.resource, object, shape),
        };
        encode(kind, &shown)
    }

    fn bookmark(&self, end_of_present: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.cursor.to_string()});
        if end_of_present {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.shape {
            Shape::Full => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table(include) => {
                let list = json!({"resourceVersion": self.cursor.to_string()});
                table::render(self.resource, &[json!({"metadata": metadata})], include, &list, false)
            }
        };
        encode("BOOKMARK", &object)
    }
}

fn encode(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}
