//! The records of sandboxes and containers: one JSON file each below `meta/`, written whole or not at all.
//!
//! Nothing is synced to the disk: what a record describes (processes, mounts, namespaces) ends with the power, and the
//! next start removes what has no record any more.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_container::config::{Hook, Hooks};
use orlop_container::hook;
use orlop_container::protocol::ExitRecord;
use orlop_cri_spec::user::ResolvedUser;
use orlop_kernel::cgroup::unit::Driver;
use orlop_kernel::file::{self, Outlives};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of both kinds of record.
const VERSION: u32 = 1;

/// A protobuf message inside a JSON file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Encoded(String);

impl Encoded {
    pub(crate) fn new(message: &impl prost::Message) -> Encoded {
        Encoded(STANDARD.encode(message.encode_to_vec()))
    }

    pub(crate) fn decode<T: prost::Message + Default>(&self) -> std::io::Result<T> {
        let bytes = STANDARD.decode(&self.0).map_err(std::io::Error::other)?;
        T::decode(bytes.as_slice()).map_err(std::io::Error::other)
    }
}

/// A sandbox, as it is kept over restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// `PodSandboxConfig`.
    pub(crate) config: Encoded,
    /// The runtime that it asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) runtime_handler: String,
    /// Who makes its cgroups.
    #[serde(default)]
    pub(crate) cgroup_driver: Driver,
    /// Addresses that CNI gave.
    pub(crate) ips: Vec<IpAddr>,
    /// What CNI answered.
    pub(crate) cni_result: serde_json::Value,
    /// It was stopped: no process, no network is left.
    pub(crate) stopped: bool,
    /// `LinuxContainerResources` that the pod needs beside its containers, when told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) overhead: Option<Encoded>,
    /// `LinuxContainerResources` of all its containers, when told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Encoded>,
}

/// A container, as it is kept over restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// `ContainerConfig`.
    pub(crate) config: Encoded,
    /// Id of the image.
    pub(crate) image_id: String,
    /// The image by digest, as far as there is one.
    pub(crate) image_ref: String,
    /// The image by name, as users know it.
    pub(crate) image_name: String,
    /// The file of its output.
    pub(crate) log_path: Option<PathBuf>,
    /// Number of the signal that asks it to end.
    pub(crate) stop_signal: i32,
    pub(crate) user: UserRecord,
    /// Its first process in the machine's PID namespace.
    pub(crate) pid: i32,
    /// How it ended.
    pub(crate) exit: Option<ExitRecord>,
    /// `LinuxContainerResources`, when they were changed after its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Encoded>,
    /// Images that it mounts: as named, and by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) volume_refs: BTreeMap<String, String>,
    /// What its hooks may take.
    #[serde(default, skip_serializing_if = "HookTimes::is_none")]
    pub(crate) hook_times: HookTimes,
}

/// What a container's hooks may take at most, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookTimes {
    create: u64,
    start: u64,
    end: u64,
}

impl HookTimes {
    pub(crate) fn of(hooks: &Hooks) -> HookTimes {
        let sum = |lists: &[&Vec<Hook>]| lists.iter().map(|list| hook::time_of(list).as_secs()).sum();
        HookTimes {
            create: sum(&[&hooks.prestart, &hooks.create_runtime, &hooks.create_container]),
            start: sum(&[&hooks.start_container, &hooks.poststart]),
            end: sum(&[&hooks.poststop]),
        }
    }

    fn is_none(&self) -> bool {
        *self == HookTimes::default()
    }

    /// Those of a creation; where it fails those of the end are run, too.
    pub(crate) fn creation(self) -> Duration {
        Duration::from_secs(self.create + self.end)
    }

    pub(crate) fn start(self) -> Duration {
        Duration::from_secs(self.start)
    }

    pub(crate) fn end(self) -> Duration {
        Duration::from_secs(self.end)
    }
}

/// Who a container runs as.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl From<&ResolvedUser> for UserRecord {
    fn from(user: &ResolvedUser) -> UserRecord {
        UserRecord { uid: user.uid, gid: user.gid, groups: user.groups.clone() }
    }
}

/// What has a version and an id.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// Folder of the kind, below `meta`.
    const FOLDER: &'static str;
    fn version(&self) -> u32;
    fn id(&self) -> &str;
}

impl Record for SandboxRecord {
    const FOLDER: &'static str = "sandboxes";
    fn version(&self) -> u32 {
        self.version
    }
    fn id(&self) -> &str {
        &self.id
    }
}

impl Record for ContainerRecord {
    const FOLDER: &'static str = "containers";
    fn version(&self) -> u32 {
        self.version
    }
    fn id(&self) -> &str {
        &self.id
    }
}

/// The folder of all records.
#[derive(Clone, Debug)]
pub(crate) struct Records(PathBuf);

impl Records {
    /// Opens the folder below a state directory.
    pub(crate) fn open(state_dir: &Path) -> std::io::Result<Records> {
        let meta = state_dir.join("meta");
        for kind in [SandboxRecord::FOLDER, ContainerRecord::FOLDER, "damaged"] {
            std::fs::create_dir_all(meta.join(kind))?;
        }
        Ok(Records(meta))
    }

    fn file<T: Record>(&self, id: &str) -> PathBuf {
        self.0.join(T::FOLDER).join(format!("{id}.json"))
    }

    /// Writes a record in place of an older one.
    pub(crate) fn write<T: Record>(&self, record: &T) -> std::io::Result<()> {
        let file = self.file::<T>(record.id());
        file::replace(&file, &serde_json::to_vec(record)?, 0o644, Outlives::Process)
    }

    /// Removes a record; fine when there is none.
    pub(crate) fn remove<T: Record>(&self, id: &str) -> std::io::Result<()> {
        file::remove(&self.file::<T>(id)).map(drop)
    }

    /// All records of a kind. A damaged one is put aside, so that it costs one object and not the start.
    pub(crate) fn load<T: Record>(&self) -> std::io::Result<Vec<T>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.0.join(T::FOLDER))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                std::fs::remove_file(&path)?;
                continue;
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let read = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<T>(&bytes)?)).and_then(
                |record| match (record.version(), record.id() == stem) {
                    (VERSION, true) => Ok(record),
                    (VERSION, false) => Err(std::io::Error::other(format!("its id is {:?}", record.id()))),
                    (other, _) => Err(std::io::Error::other(format!("its version is {other}, not {VERSION}"))),
                },
            );
            match read {
                Ok(record) => found.push(record),
                Err(error) => {
                    let aside = self.0.join("damaged").join(format!("{}-{stem}.json", T::FOLDER));
                    tracing::warn!(file = ?path, %error, ?aside, "a damaged record is put aside; what it stood for is removed");
                    std::fs::rename(&path, aside)?;
                }
            }
        }
        Ok(found)
    }
}

/// The version that new records have.
pub(crate) const fn version() -> u32 {
    VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> SandboxRecord {
        SandboxRecord {
            version: VERSION,
            id: id.into(),
            created_at: 1,
            config: Encoded::new(&orlop_proto::cri::PodSandboxConfig { hostname: "h".into(), ..Default::default() }),
            runtime_handler: String::new(),
            cgroup_driver: Driver::Systemd,
            ips: vec!["10.0.0.1".parse().unwrap()],
            cni_result: serde_json::Value::Null,
            stopped: false,
            overhead: None,
            resources: None,
        }
    }

    #[test]
    fn a_damaged_record_costs_one_object() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        records.write(&record("a")).unwrap();
        records.write(&record("b")).unwrap();
        let kind = folder.path().join("meta/sandboxes");
        std::fs::write(kind.join("b.json"), b"{\"version\":1,").unwrap();
        std::fs::write(kind.join("c.json"), serde_json::to_vec(&record("other")).unwrap()).unwrap();
        std::fs::write(kind.join(".d.json.orlop-new"), b"").unwrap();
        let found: Vec<SandboxRecord> = records.load().unwrap();
        assert_eq!(found.len(), 1);
        let config: orlop_proto::cri::PodSandboxConfig = found[0].config.decode().unwrap();
        assert_eq!((found[0].id.as_str(), config.hostname.as_str()), ("a", "h"));
        let mut aside: Vec<_> = std::fs::read_dir(folder.path().join("meta/damaged"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        aside.sort();
        assert_eq!(aside, ["sandboxes-b.json", "sandboxes-c.json"]);
        assert_eq!(std::fs::read_dir(kind).unwrap().count(), 1);
        records.remove::<SandboxRecord>("a").unwrap();
        records.remove::<SandboxRecord>("a").unwrap();
    }
}
