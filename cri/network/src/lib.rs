//! CNI caller: configuration lists, plugin execution, chains, result cache.
//!
//! The rules are those of libcni (CNI spec 1.1.0, sections 3 and 4), so that any vendor's plugins work: the first
//! list of the folder by name is the pods' network; ADD runs the chain in order with the previous result, DEL in
//! reverse with the cached one.

mod cache;
mod conf;
mod plugin;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use conf::{ConfError, NetworkList};
pub use plugin::PluginError;

/// Where configuration and plugins are.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Folder of the configuration lists.
    pub conf_dir: PathBuf,
    /// Folders of the plugins, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder of the result cache (libcni's layout below `results`).
    pub cache_dir: PathBuf,
    /// How long one plugin may take.
    pub exec_timeout: Duration,
}

/// Why a network could not be attached, detached or looked at.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable configuration.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// A plugin failed.
    #[error("plugin type={plugin:?} name={network:?} failed ({verb})")]
    Plugin {
        /// The plugin.
        plugin: String,
        /// The network.
        network: String,
        /// The verb.
        verb: &'static str,
        /// Why.
        #[source]
        source: PluginError,
    },
    /// The cache can't be written.
    #[error("write the result of network {network:?} to the cache {path:?}")]
    Cache {
        /// The network.
        network: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing to check.
    #[error("container {container:?} has no attachment {ifname:?} in the cache")]
    NotAttached {
        /// The container.
        container: String,
        /// The interface.
        ifname: String,
    },
    /// The last plugin gave no address.
    #[error("network {network:?} gave the pod no address")]
    NoAddress {
        /// The network.
        network: String,
    },
}

/// One pod's attachment.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// Id of the sandbox.
    pub container_id: String,
    /// File of the network namespace; empty on DEL when it is gone.
    pub netns: PathBuf,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Values of the capabilities (`portMappings`, `dns`, …).
    pub capabilities: Map<String, Value>,
}

/// What ADD gave.
#[derive(Clone, Debug, Default)]
pub struct AddResult {
    /// Addresses of the pod, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The whole result.
    pub result: Value,
}

/// The pods' network.
#[derive(Clone, Debug)]
pub struct Network {
    config: NetworkConfig,
}

impl Network {
    /// A caller for this configuration; nothing is read yet.
    #[must_use]
    pub fn new(config: NetworkConfig) -> Network {
        Network { config }
    }

    /// The network as configured now.
    ///
    /// # Errors
    /// When there is none or it is damaged; the message says what to do.
    pub fn list(&self) -> Result<NetworkList, NetworkError> {
        Ok(conf::load(&self.config.conf_dir)?)
    }

    /// Whether pods can be attached: a list is there, its plugins are, and none says otherwise (STATUS, from 1.1.0).
    ///
    /// # Errors
    /// Why not.
    pub async fn status(&self) -> Result<(), NetworkError> {
        let list = self.list()?;
        for plugin in &list.plugins {
            let kind = conf::plugin_type(plugin);
            if list.speaks("1.1.0") {
                self.exec("STATUS", &list, plugin, None, &Attachment::default()).await?;
            } else {
                plugin::find(&self.config.bin_dirs, kind)
                    .map_err(|source| self.failed("STATUS", &list, kind, source))?;
            }
        }
        Ok(())
    }

    /// Attaches a pod; when it fails, what was done is undone.
    ///
    /// # Errors
    /// Names network, plugin and verb.
    pub async fn attach(&self, attachment: &Attachment) -> Result<AddResult, NetworkError> {
        let list = self.list()?;
        // Before the first plugin runs: who is killed in between finds it among the attached ones and detaches it.
        self.remember(&list, attachment, &Value::Null)?;
        let added = self.add(&list, attachment).await;
        if added.is_err() {
            match self.delete(&list, attachment, None).await {
                Ok(()) => self.forget(&list, attachment),
                Err(error) => {
                    tracing::warn!(%error, container = attachment.container_id, "undoing a failed attachment");
                }
            }
        }
        added
    }

    fn remember(&self, list: &NetworkList, attachment: &Attachment, result: &Value) -> Result<(), NetworkError> {
        let path = cache::path(&self.config.cache_dir, &list.name, attachment);
        cache::write(&path, list, attachment, result).map_err(|source| NetworkError::Cache {
            network: list.name.clone(),
            path,
            source,
        })
    }

    fn forget(&self, list: &NetworkList, attachment: &Attachment) {
        let _ = orlop_kernel::file::remove(&cache::path(&self.config.cache_dir, &list.name, attachment));
    }

    async fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<AddResult, NetworkError> {
        let mut previous = None;
        for plugin in &list.plugins {
            previous = Some(self.exec("ADD", list, plugin, previous, attachment).await?);
        }
        let result = previous.unwrap_or_default();
        let mut ips = addresses(&result);
        ips.sort_by_key(IpAddr::is_ipv6);
        if ips.is_empty() {
            return Err(NetworkError::NoAddress { network: list.name.clone() });
        }
        self.remember(list, attachment, &result)?;
        Ok(AddResult { ips, result })
    }

    /// Checks that an attachment is still as its plugins made it (from 0.4.0, unless `disableCheck` is set).
    ///
    /// # Errors
    /// Names network, plugin and what is missing.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let cached = cache::find(&self.config.cache_dir, &attachment.container_id, &attachment.ifname);
        let known = cached.as_ref().and_then(|entry| Some((entry.list()?, entry.result()?, entry.capabilities())));
        let Some((list, result, capabilities)) = known else {
            let (container, ifname) = (attachment.container_id.clone(), attachment.ifname.clone());
            return Err(NetworkError::NotAttached { container, ifname });
        };
        if list.disable_check || !list.speaks("0.4.0") {
            return Ok(());
        }
        let attachment = Attachment { capabilities, ..attachment.clone() };
        for plugin in &list.plugins {
            self.exec("CHECK", &list, plugin, Some(result.clone()), &attachment).await?;
        }
        Ok(())
    }

    /// Removes what belongs to no valid attachment of the network: attachments of this caller that the cache knows are
    /// detached, then each plugin looks for leftovers of its own (GC, from 1.1.0, unless `disableGC` is set).
    /// `valid` are sandboxes with their interfaces. Attachments of other runtimes that the cache knows stay.
    ///
    /// # Errors
    /// The first one; everything is tried.
    pub async fn collect(&self, valid: &[(String, String)]) -> Result<(), NetworkError> {
        let list = self.list()?;
        if list.disable_gc {
            return Ok(());
        }
        let mut first = Ok(());
        let mut keep = valid.to_vec();
        let entries: Vec<cache::Entry> = cache::entries(&self.config.cache_dir).collect();
        for entry in entries.iter().filter(|entry| entry.network() == list.name) {
            let Some(attachment) = entry.attachment() else { continue };
            let name = (attachment.container_id.clone(), attachment.ifname.clone());
            if !entry.is_ours() {
                keep.push(name);
            } else if !valid.contains(&name) {
                first = first.and(self.detach(&attachment).await);
            }
        }
        if !list.speaks("1.1.0") {
            return first;
        }
        let keep: Vec<Value> =
            keep.iter().map(|(container_id, ifname)| json!({"containerID": container_id, "ifname": ifname})).collect();
        for plugin in &list.plugins {
            let mut plugin = plugin.clone();
            for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                plugin.insert(name.into(), json!(keep));
            }
            let collected = self.exec("GC", &list, &plugin, None, &Attachment::default()).await;
            first = first.and(collected.map(|_| ()));
        }
        first
    }

    /// Detaches a pod; fine when it is detached already, and when its namespace is gone.
    ///
    /// # Errors
    /// Names network, plugin and verb; to be tried again.
    pub async fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        // The list that the pod was attached by, even if the folder says something else today.
        let cached = cache::find(&self.config.cache_dir, &attachment.container_id, &attachment.ifname);
        let list = match cached.as_ref().and_then(|entry| entry.list()) {
            Some(list) => list,
            None => match self.list() {
                Ok(list) => list,
                Err(NetworkError::Conf(_)) if cached.is_none() => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let mut attachment = attachment.clone();
        if let Some(entry) = &cached
            && attachment.capabilities.is_empty()
        {
            attachment.capabilities = entry.capabilities();
        }
        self.delete(&list, &attachment, cached.as_ref().and_then(cache::Entry::result)).await?;
        if let Some(entry) = cached {
            entry.remove();
        }
        Ok(())
    }

    async fn delete(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        previous: Option<Value>,
    ) -> Result<(), NetworkError> {
        for plugin in list.plugins.iter().rev() {
            self.exec("DEL", list, plugin, previous.clone(), attachment).await?;
        }
        Ok(())
    }

    /// Removes what a caller that was killed left half written in the cache, by which no attachment can be found.
    pub fn remove_unfinished(&self) {
        if let Err(error) = cache::sweep(&self.config.cache_dir) {
            tracing::warn!(%error, folder = ?self.config.cache_dir, "remove half-written files of the network cache");
        }
    }

    /// Ids of sandboxes that this caller has attached, or begun to. Those of other runtimes that keep their cache in
    /// the same folder are not among them.
    #[must_use]
    pub fn attached(&self) -> Vec<String> {
        let ours = cache::entries(&self.config.cache_dir).filter(cache::Entry::is_ours);
        ours.filter_map(|entry| entry.attachment()).map(|attachment| attachment.container_id).collect()
    }

    async fn exec(
        &self,
        verb: &'static str,
        list: &NetworkList,
        plugin: &Map<String, Value>,
        previous: Option<Value>,
        attachment: &Attachment,
    ) -> Result<Value, NetworkError> {
        let kind = conf::plugin_type(plugin);
        let input = plugin_input(list, plugin, previous, &attachment.capabilities);
        let call =
            plugin::Call { verb, kind, bin_dirs: &self.config.bin_dirs, attachment, timeout: self.config.exec_timeout };
        let mut result = plugin::exec(&call, &input).await.map_err(|source| self.failed(verb, list, kind, source))?;
        if let Some(result) = result.as_object_mut() {
            result.entry("cniVersion").or_insert_with(|| json!(list.version));
        }
        Ok(result)
    }

    fn failed(&self, verb: &'static str, list: &NetworkList, kind: &str, source: PluginError) -> NetworkError {
        NetworkError::Plugin { plugin: kind.into(), network: list.name.clone(), verb, source }
    }

    /// The folder that is read.
    #[must_use]
    pub fn conf_dir(&self) -> &Path {
        &self.config.conf_dir
    }
}

/// The addresses of a result, of any version.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let since_0_3 = result["ips"].as_array().into_iter().flatten().map(|entry| &entry["address"]);
    let texts = since_0_3.chain([&result["ip4"]["ip"], &result["ip6"]["ip"]]).filter_map(Value::as_str);
    texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect()
}

/// What a plugin reads: its part of the list with name, version, previous result and the capabilities it asks for.
fn plugin_input(
    list: &NetworkList,
    plugin: &Map<String, Value>,
    previous: Option<Value>,
    given: &Map<String, Value>,
) -> Value {
    let mut input = plugin.clone();
    let asked = input.remove("capabilities");
    let wants = |name: &str| asked.as_ref().is_some_and(|asked| asked[name] == json!(true));
    let runtime: Map<String, Value> =
        given.iter().filter(|(name, _)| wants(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    input.insert("name".into(), json!(list.name));
    input.insert("cniVersion".into(), json!(list.version));
    if !runtime.is_empty() {
        input.insert("runtimeConfig".into(), runtime.into());
    }
    if let Some(previous) = previous {
        input.insert("prevResult".into(), previous);
    }
    input.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_go_to_those_who_ask() {
        let list = conf::parse(br#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"portmap"}]}"#).unwrap();
        let given = json!({"portMappings": [1], "dns": {}}).as_object().unwrap().clone();
        let plugin = json!({"type": "portmap", "capabilities": {"portMappings": true, "dns": false}});
        let input = plugin_input(&list, plugin.as_object().unwrap(), Some(json!({"ips": []})), &given);
        assert_eq!(
            input,
            json!({"type": "portmap", "name": "n", "cniVersion": "1.0.0", "runtimeConfig": {"portMappings": [1]}, "prevResult": {"ips": []}})
        );
    }
}
