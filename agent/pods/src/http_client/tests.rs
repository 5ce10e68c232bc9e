//! The client against servers that answer well, badly and not at all.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server that answers each connection with the next text and keeps what it was asked.
async fn serve(answers: Vec<String>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            let _ = sender.send(String::from_utf8_lossy(&asked[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, receiver)
}

fn request(port: u16, https: bool) -> HttpRequest {
    HttpRequest { https, host: "127.0.0.1".into(), port, path: "/x?y=1".into(), headers: vec![] }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn headers_are_the_kubelets_unless_replaced() {
    let (port, mut asked) = serve(vec![answer("200 OK", "", "ok"), answer("200 OK", "", "")]).await;
    let got = get(request(port, false), Duration::from_secs(5)).await.unwrap();
    assert_eq!((got.status, got.body.as_str()), (200, "ok"));
    let text = asked.recv().await.unwrap();
    for line in
        ["GET /x?y=1 HTTP/1.1", "User-Agent: kube-probe/1.36", "Accept: */*", &format!("Host: 127.0.0.1:{port}")]
    {
        assert!(text.contains(line), "{text}");
    }
    let mut custom = request(port, false);
    custom.headers =
        vec![("host".into(), "web.example".into()), ("Accept".into(), String::new()), ("X-A".into(), "1".into())];
    get(custom, Duration::from_secs(5)).await.unwrap();
    let text = asked.recv().await.unwrap().to_lowercase();
    assert!(text.contains("host: web.example") && text.contains("x-a: 1") && !text.contains("accept:"), "{text}");
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let (port, _asked) = serve(vec![answer("302 Found", "Location: /there\r\n", ""), answer("200 OK", "", "")]).await;
    assert_eq!(get(request(port, false), Duration::from_secs(5)).await.unwrap().status, 200);
    let (port, _asked) = serve(vec![answer("301 Moved", "Location: http://other.example/\r\n", "")]).await;
    let got = get(request(port, false), Duration::from_secs(5)).await.unwrap();
    assert_eq!((got.status, got.elsewhere.as_deref()), (301, Some("http://other.example/")));
    let many = vec![answer("302 Found", "Location: /again\r\n", ""); 12];
    let (port, _asked) = serve(many).await;
    assert!(matches!(get(request(port, false), Duration::from_secs(5)).await, Err(HttpError::Redirects { .. })));
}

#[tokio::test]
async fn what_hangs_lies_or_floods_is_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = get(request(listener.local_addr().unwrap().port(), false), Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(HttpError::Timeout { .. })));
    let (port, _asked) = serve(vec!["garbage\r\n\r\n".to_owned()]).await;
    assert!(matches!(get(request(port, false), Duration::from_secs(5)).await, Err(HttpError::Failed { .. })));
    let (port, _asked) = serve(vec![answer("200 OK", "", &"x".repeat(100_000))]).await;
    assert_eq!(get(request(port, false), Duration::from_secs(5)).await.unwrap().body.len(), MAX_BODY);
    let (port, _asked) = serve(vec!["HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()]).await;
    assert!(matches!(get(request(port, true), Duration::from_secs(5)).await, Err(HttpError::PlainAnswer { .. })));
}
