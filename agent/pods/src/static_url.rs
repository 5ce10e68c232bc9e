//! Static pods from an address, which is asked again and again: one pod, or a list of pods, in YAML or JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::static_pods::static_pod;
use reqwest::{Client, Url};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pace::Pace;
use crate::static_source::{StaticNode, StaticSet};

/// How long the server may take for its whole answer, as a kubelet's.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer in bytes, as a kubelet's.
const ANSWER_MAX: usize = 10 << 20;

/// Where static pods are asked for (`staticPodURL`, `staticPodURLHeader`, `httpCheckFrequency`).
#[derive(Clone, Debug, PartialEq)]
pub struct StaticUrl {
    url: Url,
    headers: HeaderMap,
    period: Duration,
}

impl StaticUrl {
    /// Checks the settings.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn new(url: &str, headers: &BTreeMap<String, Vec<String>>, period: Duration) -> Result<StaticUrl, String> {
        let parsed: Url = url.parse().map_err(|error| format!("staticPodURL: {url:?}: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(format!("staticPodURL: {url:?} begins with neither http:// nor https://"));
        }
        let mut map = HeaderMap::new();
        for (name, values) in headers {
            let key: HeaderName =
                name.parse().map_err(|_| format!("staticPodURLHeader: {name:?} is no name of a header"))?;
            for value in values {
                // The value may be a secret and is not told.
                let value: HeaderValue = value.parse().map_err(|_| {
                    format!("staticPodURLHeader: a value of {name:?} has characters that no header can have")
                })?;
                map.append(key.clone(), value);
            }
        }
        Ok(StaticUrl { url: parsed, headers: map, period: period.max(Duration::from_millis(1)) })
    }
}

/// Asks for static pods until cancelled. An answer that can't be used leaves the pods of the one before.
pub(crate) fn follow_url(
    source: StaticUrl,
    node: StaticNode,
    pace: Pace,
    cancel: CancellationToken,
) -> watch::Receiver<Arc<StaticSet>> {
    let (sender, receiver) = watch::channel(Arc::new(StaticSet::default()));
    let own = pace.clone();
    tokio::spawn(own.task("static pods of an address", async move {
        let (mut seen, mut complaint) = (None, None);
        // Made once: it holds the trusted certificates.
        let client = make_client();
        loop {
            let asked = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                asked = ask(&client, &source) => asked,
            };
            let news = match asked {
                Ok(text) if seen.as_ref() == Some(&text) => Ok(None),
                Ok(text) => {
                    let pods = read_pods(&text, &source, &node, pace.now());
                    seen = Some(text);
                    pods.map(Some)
                }
                Err(why) => Err(why),
            };
            match news {
                Ok(pods) => {
                    complaint = None;
                    if let Some(pods) = pods {
                        sender.send_replace(Arc::new(StaticSet { scanned: true, pods }));
                    }
                }
                Err(why) if complaint.as_ref() == Some(&why) => {}
                Err(why) => {
                    tracing::warn!(url = %source.url, why, "no static pods from this address; those from before stay");
                    complaint = Some(why);
                }
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(source.period) => {}
            }
        }
    }));
    receiver
}

fn make_client() -> Result<Client, String> {
    // Whoever has set a provider for the process keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(DEADLINE).build().map_err(|error| chain(&error))
}

async fn ask(client: &Result<Client, String>, source: &StaticUrl) -> Result<String, String> {
    let client = client.as_ref().map_err(Clone::clone)?;
    let request = client.get(source.url.clone()).headers(source.headers.clone());
    let mut answer = request.send().await.map_err(|error| chain(&error))?;
    if answer.status() != http::StatusCode::OK {
        return Err(format!("the server answers {}", answer.status()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| chain(&error))? {
        if bytes.len() + piece.len() > ANSWER_MAX {
            return Err(format!("the answer is longer than {ANSWER_MAX} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|error| format!("the answer is no UTF-8: {error}"))
}

/// An error with its causes: the client's own text leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The pods of an answer by uid; an empty one has none.
fn read_pods(
    text: &str,
    source: &StaticUrl,
    node: &StaticNode,
    now: Timestamp,
) -> Result<BTreeMap<String, Arc<Pod>>, String> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let document: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let definitions = match document.get("kind").and_then(|kind| kind.as_str()) {
        Some("PodList" | "List") => {
            let items = document.get("items").and_then(|items| items.as_array());
            items.ok_or("items is missing in the list of pods")?.iter().map(as_pod).collect()
        }
        _ => vec![document],
    };
    let mut pods: Vec<Arc<Pod>> = Vec::new();
    for definition in &definitions {
        let origin = format!("url:{}", source.url);
        let pod = static_pod(definition, &origin, &node.name, now).map_err(|error| error.to_string())?;
        pods.push(Arc::new(pod));
    }
    let mut known = BTreeMap::new();
    for pod in pods {
        let name = (containers::namespace(&pod).to_owned(), containers::name(&pod).to_owned());
        match known.entry(name) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(pod)),
            std::collections::btree_map::Entry::Occupied(_) => node.tell_ignored(&pod, "http"),
        }
    }
    Ok(known.into_values().map(|pod| (containers::uid(&pod).to_owned(), pod)).collect())
}

/// An item of a list says its kind, or is what the list is of.
fn as_pod(item: &serde_json::Value) -> serde_json::Value {
    let mut item = item.clone();
    if let Some(fields) = item.as_object_mut() {
        fields.entry("kind").or_insert_with(|| "Pod".into());
    }
    item
}

#[cfg(test)]
mod tests;
