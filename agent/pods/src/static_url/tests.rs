//! Static pods of a server on loopback.

use std::sync::Mutex;

use orlop_agent_core::ports::{EventType, Events, ObjectRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Events for Told {
    fn record(&self, object: ObjectRef, _: EventType, reason: &str, message: &str) {
        self.0.lock().unwrap().push(format!("{} {reason}: {message}", object.name));
    }
}

/// A server that gives an answer which can be changed, to those who know the word.
async fn serve(answer: watch::Receiver<(u16, String)>, answered: watch::Sender<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let (mut status, body) = answer.borrow().clone();
            let head = String::from_utf8(head).unwrap().to_lowercase();
            if !(head.contains("\r\nx-word: open\r\n") && head.contains("\r\nx-word: sesame\r\n")) {
                status = 403;
            }
            let text =
                format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
            answered.send_modify(|count| *count += 1);
        }
    });
    format!("http://{address}/pods")
}

fn pod(name: &str, image: &str) -> String {
    format!(
        r#"{{"kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{"containers": [{{"name": "a", "image": "{image}"}}]}}}}"#
    )
}

/// Names with images, as the set has them.
fn images(set: &StaticSet) -> Vec<String> {
    let image = |pod: &Arc<Pod>| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    let mut all: Vec<String> =
        set.pods.values().map(|pod| format!("{} {}", containers::name(pod), image(pod))).collect();
    all.sort();
    all
}

#[tokio::test]
async fn pods_of_an_address_come_change_and_go() {
    let (answers, receiver) = watch::channel((503, String::new()));
    let (counter, mut answered) = watch::channel(0);
    let url = serve(receiver, counter).await;
    let headers = BTreeMap::from([("X-Word".to_owned(), vec!["open".to_owned(), "sesame".to_owned()])]);
    let source = StaticUrl::new(&url, &headers, Duration::from_millis(5)).unwrap();
    let (told, cancel) = (Arc::new(Told::default()), CancellationToken::new());
    let node = StaticNode { name: "n1".into(), events: told.clone() };
    let mut set = follow_url(source, node, Pace::default(), cancel.clone());
    let list =
        format!(r#"{{"kind": "PodList", "items": [{}, {}, {}]}}"#, pod("a", "x:2"), pod("b", "x:1"), pod("b", "x:9"));
    let without_kind = list.replace(r#""kind": "Pod","#, "");
    let steps: [(u16, String, &[&str]); 6] = [
        (200, pod("a", "x:1"), &["a-n1 x:1"]),
        (200, list, &["a-n1 x:2", "b-n1 x:1"]),
        (200, format!("{without_kind}\n"), &["a-n1 x:2", "b-n1 x:1"]),
        (200, "kind: Pod\nmetadata: {name: c}\nspec: {containers: [{name: a, image: 'x:1'}]}\n".into(), &["c-n1 x:1"]),
        (200, String::new(), &[]),
        (200, pod("d", "x:1"), &["d-n1 x:1"]),
    ];
    for (status, body, want) in steps {
        answers.send_replace((status, body.clone()));
        let deadline = Duration::from_secs(10);
        let waited = tokio::time::timeout(deadline, set.wait_for(|set| set.scanned && images(set) == want)).await;
        let pods = waited.unwrap_or_else(|_| panic!("{body}")).unwrap().pods.clone();
        let source = |pod: &Arc<Pod>| containers::annotation(pod, "kubernetes.io/config.source").map(str::to_owned);
        assert!(pods.values().all(|pod| source(pod).as_deref() == Some("http") && containers::is_static(pod)));
    }
    for (status, body) in [(503, pod("e", "x:1")), (200, "kind: [".to_owned()), (200, r#"{"kind": "Node"}"#.to_owned())]
    {
        answers.send_replace((status, body));
        // The second request comes after the answer to the first was looked at; one may have been under way.
        let until = *answered.borrow() + 3;
        let waited = answered.wait_for(|count| *count >= until);
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap().unwrap();
        assert_eq!(images(&set.borrow_and_update()), ["d-n1 x:1"], "what can't be used changes nothing");
    }
    answers.send_replace((200, pod("f", "x:1")));
    let waited = set.wait_for(|set| images(set) == ["f-n1 x:1"]);
    tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap().unwrap();
    cancel.cancel();
    let texts = told.0.lock().unwrap().clone();
    assert!(texts[0].starts_with("b-n1 FailedValidation: Error validating pod b-n1_default("), "{texts:?}");
    assert!(texts[0].ends_with(") from http due to duplicate pod name \"b-n1\", ignoring"), "{texts:?}");
}

#[test]
fn settings_are_checked() {
    let header = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), vec![value.to_owned()])]);
    for (url, headers, word) in [
        ("nowhere", BTreeMap::new(), "staticPodURL"),
        ("ftp://a/b", BTreeMap::new(), "staticPodURL"),
        ("http://a/b", header("a b", "c"), "staticPodURLHeader"),
        ("http://a/b", header("a", "secret\n"), "staticPodURLHeader"),
    ] {
        let error = StaticUrl::new(url, &headers, Duration::from_secs(20)).unwrap_err();
        assert!(error.contains(word) && !error.contains("secret"), "{error}");
    }
}
