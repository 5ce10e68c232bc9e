//! The API by `orlop` itself: enough to apply a manifest, wait and look, where no kubectl is at hand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{ApiResource, Discovery, Scope};
use kube::{Client, Config};
use serde::Deserialize;
use serde_json::Value;

/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A connection to the API.
pub struct ApiClient {
    client: Client,
    discovery: Discovery,
}

impl ApiClient {
    /// Connects with a kubeconfig and asks what kinds of objects there are.
    ///
    /// # Errors
    /// When the file is missing or the API gives no answer.
    pub async fn open(kubeconfig: &Path) -> Result<ApiClient> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read {}; orlop up makes it", kubeconfig.display()))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.connect_timeout = Some(CONNECT_TIME);
        let client = Client::try_from(config)?;
        let discovery = Discovery::new(client.clone()).run().await.context("ask the API what it serves")?;
        Ok(ApiClient { client, discovery })
    }

    /// A kind by any of its names: `pods`, `pod`, `Pod`.
    fn kind(&self, name: &str) -> Result<(ApiResource, Scope)> {
        let wanted = name.to_ascii_lowercase();
        let kinds = self.discovery.groups().flat_map(|group| group.recommended_resources());
        let fits = |resource: &ApiResource| resource.plural == wanted || resource.kind.to_ascii_lowercase() == wanted;
        kinds
            .filter(|(resource, _)| fits(resource))
            .min_by_key(|(resource, _)| !resource.group.is_empty())
            .map(|(resource, capabilities)| (resource, capabilities.scope))
            .ok_or_else(|| anyhow!("the API has no kind {name:?}"))
    }

    fn objects(&self, resource: &ApiResource, scope: &Scope, namespace: &str) -> Api<DynamicObject> {
        match scope {
            Scope::Namespaced if !namespace.is_empty() => {
                Api::namespaced_with(self.client.clone(), namespace, resource)
            }
            _ => Api::all_with(self.client.clone(), resource),
        }
    }

    /// Makes the objects of a manifest, or merges it into those that are there. Tells of each.
    ///
    /// # Errors
    /// Names file and object.
    pub async fn apply(&self, manifest: &str, namespace: &str) -> Result<()> {
        for document in serde_saphyr::from_multiple::<Value>(manifest).context("the manifest is no YAML")? {
            if document.is_null() {
                continue;
            }
            let text =
                |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_string();
            let (kind, name) = (text("/kind"), text("/metadata/name"));
            if kind.is_empty() || name.is_empty() {
                bail!("each object of a manifest needs kind and metadata.name");
            }
            let (resource, scope) = self.kind(&kind)?;
            let own = text("/metadata/namespace");
            let api = self.objects(&resource, &scope, if own.is_empty() { namespace } else { &own });
            let title = format!("{}/{name}", resource.kind.to_ascii_lowercase());
            let object: DynamicObject = serde_json::from_value(document.clone()).with_context(|| title.clone())?;
            let made = api.create(&PostParams::default(), &object).await;
            match made {
                Ok(_) => println!("{title} created"),
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let patch = Patch::Merge(&document);
                    api.patch(&name, &PatchParams::default(), &patch).await.with_context(|| title.clone())?;
                    println!("{title} configured");
                }
                Err(error) => return Err(error).with_context(|| title),
            }
        }
        Ok(())
    }

    /// Waits until a condition of an object is true. The caller sets the time.
    ///
    /// # Errors
    /// When the object can't be followed, or a pod has ended for good.
    pub async fn wait_condition(&self, kind: &str, namespace: &str, name: &str, condition: &str) -> Result<()> {
        let (resource, scope) = self.kind(kind)?;
        let api = self.objects(&resource, &scope, namespace);
        loop {
            let params = WatchParams::default().fields(&format!("metadata.name={name}"));
            let mut events = api.watch(&params, "0").await?.boxed();
            while let Some(event) = events.try_next().await? {
                let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
                let status = &object.data["status"];
                let holds = |entry: &Value| entry["type"] == condition && entry["status"] == "True";
                if status["conditions"].as_array().is_some_and(|all| all.iter().any(holds)) {
                    return Ok(());
                }
                if status["phase"] == "Failed" {
                    bail!("{kind} {name} has failed: {} {}", status["reason"], status["message"]);
                }
            }
        }
    }

    /// A field of an object, by JSON pointer.
    ///
    /// # Errors
    /// When there is no such object or field.
    pub async fn field(&self, kind: &str, namespace: &str, name: &str, pointer: &str) -> Result<String> {
        let (resource, scope) = self.kind(kind)?;
        let object = self.objects(&resource, &scope, namespace).get(name).await?;
        let found = object.data.pointer(pointer).and_then(Value::as_str).map(str::to_string);
        found.with_context(|| format!("{kind} {name} has no {pointer}"))
    }

    /// The table of objects, as the API lays it out for people.
    ///
    /// # Errors
    /// When the kind is not known.
    pub async fn table(&self, kind: &str, namespace: &str, name: Option<&str>) -> Result<String> {
        let (resource, scope) = self.kind(kind)?;
        let api = self.objects(&resource, &scope, namespace);
        let mut url = api.resource_url().to_string();
        if let Some(name) = name {
            url.push('/');
            url.push_str(name);
        }
        let request = http::Request::get(url)
            .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
            .body(Vec::new())?;
        let table: Table = self.client.request(request).await?;
        Ok(table.to_string())
    }
}

/// A table of the API (`meta.k8s.io/v1`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<usize> =
            (0..self.column_definitions.len()).filter(|place| self.column_definitions[*place].priority == 0).collect();
        let head = shown.iter().map(|place| self.column_definitions[*place].name.to_uppercase()).collect();
        let mut lines: Vec<Vec<String>> = vec![head];
        for row in &self.rows {
            let cell = |place: &usize| match row.cells.get(*place) {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => String::new(),
            };
            lines.push(shown.iter().map(cell).collect());
        }
        let widths: Vec<usize> = (0..shown.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
            .collect();
        for line in &lines {
            let text: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
            writeln!(f, "{}", text.join("   ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_wide_ones_left_out() {
        let table: Table = serde_json::from_value(json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Restarts"}, {"name": "Node", "priority": 1}],
            "rows": [{"cells": ["hello", 3, "n"]}, {"cells": ["a", 10, "n"]}],
        }))
        .unwrap();
        assert_eq!(table.to_string(), "NAME    RESTARTS\nhello   3\na       10\n");
    }
}
