//! Health: alive, ready, and why not.

use std::sync::atomic::Ordering;

use http::{Response, StatusCode};

use crate::api::Api;
use crate::registry;
use crate::rest::answer::{self, Body};
use crate::rest::query::Query;
use crate::storage::ObjectKey;

/// A check: its name and what is wrong.
type Check = (&'static str, Result<(), String>);

/// Answers `/healthz`, `/livez`, `/readyz` and their single checks.
pub fn answer(api: &Api, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let page = parts.next()?;
    if !matches!(page, "healthz" | "livez" | "readyz") {
        return None;
    }
    let checks = checks(api, page == "readyz");
    if let Some(one) = parts.next() {
        let (_, result) = checks.into_iter().find(|(name, _)| *name == one)?;
        return Some(match result {
            Ok(()) => answer::text(StatusCode::OK, "ok"),
            Err(why) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let checks: Vec<Check> = checks.into_iter().filter(|(name, _)| !excluded.contains(name)).collect();
    let good = checks.iter().all(|(_, result)| result.is_ok());
    if good && !query.has("verbose") {
        return Some(answer::text(StatusCode::OK, "ok"));
    }
    let lines: String = checks
        .iter()
        .map(|(name, result)| match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => format!("[-]{name} failed: {why}\n"),
        })
        .collect();
    let (code, outcome) = if good { (StatusCode::OK, "passed") } else { (StatusCode::INTERNAL_SERVER_ERROR, "failed") };
    Some(answer::text(code, format!("{lines}{page} check {outcome}\n")))
}

fn checks(api: &Api, ready: bool) -> Vec<Check> {
    let key = ObjectKey::new(registry::core("namespaces"), "", "default");
    let store = api.store.get(&key).map(|_| ()).map_err(|error| error.to_string());
    let mut checks = vec![("ping", Ok(())), ("store", store)];
    if ready {
        let started = api.started.load(Ordering::Acquire);
        checks.push(("first-objects", if started { Ok(()) } else { Err("not finished".into()) }));
        let ending = api.cancel.is_cancelled();
        checks.push(("shutdown", if ending { Err("process is shutting down".into()) } else { Ok(()) }));
    }
    checks
}
