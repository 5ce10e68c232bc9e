//! Static pods from a directory of the node: watched by inotify, scanned in full once in a while.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::{EventType, Events};
use orlop_agent_core::static_pods::static_pod;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pace::Pace;
use crate::recorder::pod_event;

/// Largest file that is read as a pod.
const MAX_FILE: u64 = 1 << 20;

/// Static pods of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct StaticSet {
    /// The directory was scanned once.
    pub scanned: bool,
    /// Pods by uid.
    pub pods: BTreeMap<String, Arc<Pod>>,
}

/// The node that static pods are for.
pub(crate) struct StaticNode {
    /// Its name.
    pub name: String,
    /// Where it is told of pods that can't be.
    pub events: Arc<dyn Events>,
}

impl StaticNode {
    /// Tells that a pod is ignored because its source has another one of that name.
    pub(crate) fn tell_ignored(&self, pod: &Pod, source: &str) {
        let name = containers::name(pod);
        let message = format!(
            "Error validating pod {} from {source} due to duplicate pod name {name:?}, ignoring",
            containers::display(pod)
        );
        pod_event(&*self.events, pod, EventType::Warning, "FailedValidation", &message);
    }
}

/// Two sources as one, which has spoken once both have.
pub(crate) fn join_sources(
    mut one: watch::Receiver<Arc<StaticSet>>,
    mut other: watch::Receiver<Arc<StaticSet>>,
    pace: &Pace,
) -> watch::Receiver<Arc<StaticSet>> {
    fn union(one: &StaticSet, other: &StaticSet) -> Arc<StaticSet> {
        let pods = one.pods.iter().chain(&other.pods).map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        Arc::new(StaticSet { scanned: one.scanned && other.scanned, pods })
    }
    let (sender, receiver) = watch::channel(Arc::new(StaticSet::default()));
    tokio::spawn(pace.task("static sources", async move {
        loop {
            sender.send_replace(union(&one.borrow_and_update(), &other.borrow_and_update()));
            let changed = tokio::select! {
                biased;
                changed = one.changed() => changed,
                changed = other.changed() => changed,
            };
            // A source ends when the agent does.
            if changed.is_err() {
                return;
            }
        }
    }));
    receiver
}

/// Follows a directory until cancelled.
pub(crate) fn follow_folder(
    folder: PathBuf,
    node: StaticNode,
    period: Duration,
    pace: Pace,
    cancel: CancellationToken,
) -> watch::Receiver<Arc<StaticSet>> {
    let (sender, receiver) = watch::channel(Arc::new(StaticSet::default()));
    let own = pace.clone();
    tokio::spawn(own.task("static pods", async move {
        let mut known = Known::default();
        loop {
            // Without threads there is no reactor to tell of changes; the folder is then scanned in its period only.
            let mut events = if pace.threads { open_watch(&folder) } else { None };
            let (path, name, now) = (folder.clone(), node.name.clone(), pace.now());
            let scan = pace.blocking(move || {
                known.scan(&path, &name, now);
                known
            });
            let Ok(scanned) = scan.await else { return };
            known = scanned;
            let set = StaticSet { scanned: true, pods: known.pods(&node) };
            sender.send_if_modified(|old| {
                let changed = !old.scanned || old.pods != set.pods;
                if changed {
                    *old = Arc::new(set);
                }
                changed
            });
            let news = async {
                match &mut events {
                    Some(events) => drop(events.next().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = news => {}
                () = tokio::time::sleep(period) => {}
            }
        }
    }));
    receiver
}

/// The watch is opened before the scan, so that no change falls between them.
fn open_watch(folder: &Path) -> Option<inotify::EventStream<[u8; 4096]>> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::ONLYDIR;
    let watch = Inotify::init().and_then(|inotify| {
        inotify.watches().add(folder, mask)?;
        inotify.into_event_stream([0; 4096])
    });
    match watch {
        Ok(events) => Some(events),
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "static pods are found by scanning only");
            None
        }
    }
}

/// Pods by file; a file that can't be read any more keeps the pod that it last defined.
#[derive(Default)]
struct Known {
    files: BTreeMap<PathBuf, Arc<Pod>>,
    /// Complaints that were made, so that a bad file is not complained of at each scan.
    complaints: BTreeMap<PathBuf, String>,
    /// Pods that were told to be ignored because another one has their name, by uid.
    ignored: BTreeSet<String>,
}

impl Known {
    /// The pods by uid. Of those with one name the first file counts; the others are told of once.
    fn pods(&mut self, node: &StaticNode) -> BTreeMap<String, Arc<Pod>> {
        let mut names = BTreeMap::new();
        let mut pods = BTreeMap::new();
        let mut ignored = BTreeSet::new();
        for (path, pod) in &self.files {
            let (name, uid) = (containers::name(pod), containers::uid(pod).to_owned());
            let other = *names.entry((containers::namespace(pod), name)).or_insert(path);
            if other == path {
                pods.insert(uid, pod.clone());
                continue;
            }
            if !self.ignored.contains(&uid) {
                tracing::warn!(file = %path.display(), other = %other.display(), "a static pod of that name is defined twice; the later file is ignored");
                node.tell_ignored(pod, "file");
            }
            ignored.insert(uid);
        }
        self.ignored = ignored;
        pods
    }

    fn scan(&mut self, folder: &Path, node_name: &str, now: Timestamp) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.files.clear();
                return;
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "can't read the directory of static pods; its pods stay");
                return;
            }
        };
        let mut seen = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if hidden || !std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                continue;
            }
            seen.push(path.clone());
            match read_pod(&path, node_name, now) {
                Ok(pod) => {
                    self.complaints.remove(&path);
                    let same = self.files.get(&path).is_some_and(|known| known.metadata.uid == pod.metadata.uid);
                    if !same {
                        self.files.insert(path, Arc::new(pod));
                    }
                }
                Err(message) => {
                    if self.complaints.get(&path) != Some(&message) {
                        tracing::warn!(file = %path.display(), message, "this file is no static pod");
                        self.complaints.insert(path, message);
                    }
                }
            }
        }
        self.files.retain(|path, _| seen.contains(path));
        self.complaints.retain(|path, _| seen.contains(path));
    }
}

fn read_pod(path: &Path, node_name: &str, now: Timestamp) -> Result<Pod, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("{size} bytes are more than the {MAX_FILE} that a pod may have"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let definition: serde_json::Value = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    static_pod(&definition, &format!("file:{}", path.display()), node_name, now).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_agent_core::ports::ObjectRef;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: \"x:1\"}]}\n";

    #[derive(Default)]
    struct Told(std::sync::Mutex<Vec<String>>);

    impl Events for Told {
        fn record(&self, object: ObjectRef, _: EventType, reason: &str, message: &str) {
            self.0.lock().unwrap().push(format!("{} {reason}: {message}", object.name));
        }
    }

    #[test]
    fn of_two_pods_with_one_name_the_first_file_counts_and_the_other_is_told_of_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, image: &str| {
            std::fs::write(folder.path().join(name), POD.replace("x:1", image)).unwrap();
        };
        let (mut known, told, now) = (Known::default(), Arc::new(Told::default()), Timestamp::UNIX_EPOCH);
        let node = StaticNode { name: "n1".into(), events: told.clone() };
        let mut look = || -> Vec<String> {
            known.scan(folder.path(), "n1", now);
            let image = |pod: &Arc<Pod>| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            known.pods(&node).values().map(image).collect()
        };
        write("a.yaml", "first:1");
        write("b.yaml", "second:1");
        assert_eq!((look(), look()), (vec!["first:1".to_owned()], vec!["first:1".to_owned()]));
        write("b.yaml", "third:1");
        assert_eq!(look(), ["first:1"]);
        let texts = std::mem::take(&mut *told.0.lock().unwrap());
        assert_eq!(texts.len(), 2, "each version once: {texts:?}");
        assert!(texts[0].starts_with("web-n1 FailedValidation: Error validating pod web-n1_default("), "{texts:?}");
        assert!(texts[0].ends_with(") from file due to duplicate pod name \"web-n1\", ignoring"), "{texts:?}");
        std::fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert_eq!(look(), ["third:1"], "the name is free");
    }

    #[tokio::test]
    async fn files_come_change_break_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let mut set = follow_folder(
            folder.path().to_path_buf(),
            StaticNode { name: "n1".into(), events: Arc::new(Told::default()) },
            Duration::from_secs(60),
            Pace::default(),
            cancel.clone(),
        );
        let wait = Duration::from_secs(10);
        tokio::time::timeout(wait, set.wait_for(|set| set.scanned && set.pods.is_empty())).await.unwrap().unwrap();
        std::fs::write(folder.path().join(".hidden.yaml"), POD).unwrap();
        std::fs::write(folder.path().join("web.yaml"), POD).unwrap();
        let first = tokio::time::timeout(wait, set.wait_for(|set| set.pods.len() == 1))
            .await
            .unwrap()
            .unwrap()
            .pods
            .keys()
            .next()
            .cloned();
        std::fs::write(folder.path().join("web.yaml"), "kind: [").unwrap();
        std::fs::write(
            folder.path().join("other.json"),
            r#"{"kind":"Pod","metadata":{"name":"o"},"spec":{"containers":[{"name":"a","image":"y:1"}]}}"#,
        )
        .unwrap();
        let both =
            tokio::time::timeout(wait, set.wait_for(|set| set.pods.len() == 2)).await.unwrap().unwrap().pods.clone();
        assert!(first.is_some_and(|uid| both.contains_key(&uid)), "a broken file keeps its pod");
        std::fs::remove_file(folder.path().join("web.yaml")).unwrap();
        tokio::time::timeout(wait, set.wait_for(|set| set.pods.len() == 1)).await.unwrap().unwrap();
        cancel.cancel();
    }
}
