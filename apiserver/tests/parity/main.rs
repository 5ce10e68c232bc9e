//! The embedded server beside a real kube-apiserver: the same requests, the same answers.
//!
//! Each file of `cases/` is one namespace's list of requests, sent to both servers in order; what may differ (times,
//! UIDs, revisions, random names) is made equal before the answers are compared. Where they differ, ours is wrong.

mod case;
mod normal;
#[path = "../support/real.rs"]
mod real;
#[path = "../support/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::Path;

use case::{Answer, Case, Script, send};
use serde_json::{Value, json};

/// Differences shown of one request.
const SHOWN_MAX: usize = 12;

/// A server, and what was saved of its answers.
struct Side {
    url: String,
    client: reqwest::Client,
    saved: BTreeMap<String, String>,
}

impl Side {
    async fn answer(&mut self, case: &Case) -> Answer {
        let answer = send(&self.client, &self.url, case, &self.saved).await;
        for (name, pointer) in &case.save {
            let value = answer.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            self.saved.insert(name.clone(), value.to_string());
        }
        answer
    }

    async fn set_up(&mut self, namespace: &str) {
        self.saved = BTreeMap::from([("ns".to_string(), namespace.to_string())]);
        let requests = [
            ("/api/v1/namespaces".to_string(), json!({"metadata": {"name": namespace}})),
            // Made by the controller manager, which the real server doesn't have here.
            (format!("/api/v1/namespaces/{namespace}/serviceaccounts"), json!({"metadata": {"name": "default"}})),
            (format!("/api/v1/namespaces/{namespace}/configmaps"), json!({"metadata": {"name": "kube-root-ca.crt"}})),
        ];
        for (path, body) in requests {
            let answer = self
                .client
                .post(format!("{}{path}", self.url))
                .header("content-type", "application/json")
                .body(body.to_string());
            let code = answer.send().await.unwrap().status().as_u16();
            assert!(matches!(code, 201 | 409), "{path}: {code}");
        }
    }
}

fn scripts() -> Vec<Script> {
    let only = std::env::var("PARITY").unwrap_or_default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/cases");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Script::read(file)).filter(|script| script.name.contains(&only)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_a_real_server() {
    let (real, own) = tokio::join!(
        real::RealServer::start(),
        server::Server::start_with(|config| {
            config.service_subnet = real::SERVICE_SUBNET.parse().unwrap();
        })
    );
    let mut sides = [
        Side { url: real.url.clone(), client: real.admin.clone(), saved: BTreeMap::new() },
        Side { url: own.url.clone(), client: own.admin.clone(), saved: BTreeMap::new() },
    ];
    let (mut failures, mut count) = (Vec::new(), 0);
    for script in scripts() {
        for side in &mut sides {
            side.set_up(&format!("parity-{}", script.name)).await;
        }
        for case in &script.cases {
            count += 1;
            let [first, second] = &mut sides;
            let (mut expected, found) = tokio::join!(first.answer(case), second.answer(case));
            normal::narrow(&mut expected.body, &found.body, &case.subset);
            let mut different = normal::differences(&expected, &found, &case.ignore);
            let more = different.len().saturating_sub(SHOWN_MAX);
            different.truncate(SHOWN_MAX);
            if !different.is_empty() {
                failures.push(format!(
                    "{}: {}\n    {}{}",
                    script.name,
                    case.title(),
                    different.join("\n    "),
                    if more > 0 { format!("\n    and {more} more") } else { String::new() }
                ));
            }
        }
    }
    drop(real);
    drop(own.stop().await);
    assert!(
        failures.is_empty(),
        "{} of {count} answers differ (real, then ours):\n{}",
        failures.len(),
        failures.join("\n")
    );
}
