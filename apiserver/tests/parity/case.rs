//! One request, read from a file, and its answer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// A file of requests.
pub struct Script {
    pub name: String,
    pub cases: Vec<Case>,
}

/// A request. `{name}` in address and body stands for what was saved before; `{ns}` is the namespace.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Method and address.
    send: String,
    /// Body, when it is sent as JSON.
    #[serde(default)]
    body: Value,
    /// Body as it is.
    #[serde(default)]
    text: Option<String>,
    /// `Content-Type`; of a patch only what follows `application/`.
    #[serde(default)]
    media: Option<String>,
    #[serde(default)]
    accept: Option<String>,
    /// What is saved of the answer: name and pointer.
    #[serde(default)]
    pub save: BTreeMap<String, String>,
    /// Lists of which ours is a part: pointer to the list, key or pointer that names an item.
    #[serde(default)]
    pub subset: BTreeMap<String, String>,
    /// Pointers (with `*` for any part) whose difference is meant, each with the reason.
    #[serde(default)]
    pub ignore: BTreeMap<String, String>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub media: String,
    pub warnings: Vec<String>,
    /// The document; for a stream the list of its documents.
    pub body: Value,
}

impl Script {
    pub fn read(file: &Path) -> Script {
        let text = std::fs::read_to_string(file).unwrap();
        let cases = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Script { name: file.file_stem().unwrap().to_string_lossy().into_owned(), cases }
    }
}

impl Case {
    pub fn title(&self) -> String {
        let body: String =
            if self.body.is_null() { self.text.clone().unwrap_or_default() } else { self.body.to_string() };
        let body: String = body.chars().take(150).collect();
        format!("{} {body}", self.send)
    }
}

fn fill(text: &str, saved: &BTreeMap<String, String>) -> String {
    saved.iter().fold(text.to_string(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// Sends a request.
pub async fn send(client: &reqwest::Client, url: &str, case: &Case, saved: &BTreeMap<String, String>) -> Answer {
    let (method, path) = case.send.split_once(' ').expect("method and address");
    let mut request = client.request(method.parse().unwrap(), format!("{url}{}", fill(path, saved)));
    if let Some(accept) = &case.accept {
        request = request.header("accept", accept);
    }
    let text = match (&case.text, &case.body) {
        (Some(text), _) => Some(text.clone()),
        (None, Value::Null) => None,
        (None, body) => Some(body.to_string()),
    };
    if let Some(text) = text {
        let media = case.media.as_deref().unwrap_or("json");
        let media =
            if media.contains('/') || media.is_empty() { media.to_string() } else { format!("application/{media}") };
        request = request.header("content-type", media).body(fill(&text, saved));
    }
    let response = request.send().await.unwrap_or_else(|error| panic!("{}: {error}", case.send));
    let header = |name: &str| -> Vec<String> {
        response.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or_default().to_string()).collect()
    };
    let (media, mut warnings) = (header("content-type").join(","), header("warning"));
    warnings.sort();
    let code = response.status().as_u16();
    let text = response.text().await.unwrap();
    let parsed = match media.as_str() {
        "application/yaml" => serde_saphyr::from_str(&text).map_err(|error| error.to_string()),
        _ => serde_json::from_str(&text).map_err(|error| error.to_string()),
    };
    let body = parsed.unwrap_or_else(|_| {
        let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        match lines {
            Ok(lines) if !lines.is_empty() => Value::Array(lines),
            _ => Value::String(text.clone()),
        }
    });
    // One document of a stream is a stream too.
    let body = if path.contains("watch=") && code == 200 && body.is_object() { Value::Array(vec![body]) } else { body };
    Answer { code, media, warnings, body }
}
