//! Tests of the store.

use serde_json::json;

use super::*;
use crate::registry;

fn pods() -> &'static Resource {
    registry::find("", "v1", "pods").unwrap()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": name}}})
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(pods(), "a", name)
}

#[tokio::test]
async fn an_object_is_kept_over_a_restart_and_revisions_grow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.redb");
    let (store, _) = Store::open(&path).unwrap();
    let made = store.put(&key("x"), Expect::Absent, pod("x")).await.unwrap();
    assert!(matches!(store.put(&key("x"), Expect::Absent, pod("x")).await, Err(StoreError::Exists)));
    assert!(matches!(Store::open(&path), Err(StoreError::InUse(_))));
    let before = store.revision();
    assert_eq!(made["metadata"]["resourceVersion"], json!(before.to_string()));
    store.close().await;
    let (store, opened) = Store::open(&path).unwrap();
    assert!(opened.revision > before);
    assert_eq!(store.get_value(&key("x")).unwrap().unwrap(), made);
    assert!(matches!(store.changes_after(pods(), before), Next::TooOld));
}

#[tokio::test]
async fn a_changed_object_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("o")).unwrap();
    store.put(&key("x"), Expect::Absent, pod("x")).await.unwrap();
    let first = store.revision();
    store.put(&key("x"), Expect::Revision(first), pod("x")).await.unwrap();
    assert!(matches!(store.put(&key("x"), Expect::Revision(first), pod("x")).await, Err(StoreError::Changed)));
    assert!(matches!(store.delete(&key("x"), first).await, Err(StoreError::Changed)));
    store.delete(&key("x"), store.revision()).await.unwrap();
    assert!(matches!(store.delete(&key("x"), first).await, Err(StoreError::Missing)));
    let Next::Changes(changes) = store.changes_after(pods(), 1) else { panic!("the window is there") };
    let kinds: Vec<ChangeKind> = changes.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Deleted]);
}

#[tokio::test]
async fn a_continued_list_shows_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("o")).unwrap();
    for name in ["a", "b", "c"] {
        store.put(&key(name), Expect::Absent, pod(name)).await.unwrap();
    }
    let first = store.list(pods(), &Range::default(), 2, |_| true).unwrap();
    assert!(first.more && first.items.len() == 2);
    store.delete(&key("c"), store.revision()).await.unwrap();
    let range = Range { after: Some(("a".into(), "b".into())), revision: Some(first.revision), ..Range::default() };
    let second = store.list(pods(), &range, 2, |_| true).unwrap();
    assert_eq!(second.items[0].name, "c");
    assert!(!second.more);
    let gone = Range { revision: Some(1), ..range };
    assert!(matches!(store.list(pods(), &gone, 2, |_| true), Err(StoreError::TooOld(1))));
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.redb");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let Err(refused) = Store::open(&path) else { panic!("opened") };
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 1 << 20]);
    // Moved away, an empty one is made; a rest of an interrupted making is no obstacle.
    std::fs::rename(&path, dir.path().join("kept")).unwrap();
    std::fs::write(path.with_extension("new"), "half").unwrap();
    let (store, _) = Store::open(&path).unwrap();
    store.put(&key("x"), Expect::Absent, pod("x")).await.unwrap();
}

#[tokio::test]
async fn a_file_with_damaged_pages_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.redb");
    let (store, _) = Store::open(&path).unwrap();
    for number in 0..200 {
        store.put(&key(&format!("p{number}")), Expect::Absent, pod("x")).await.unwrap();
    }
    store.close().await;
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in bytes.iter_mut().skip(8192) {
        *byte ^= 0x5a;
    }
    std::fs::write(&path, bytes).unwrap();
    let Err(refused) = Store::open(&path) else { panic!("opened") };
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
}
