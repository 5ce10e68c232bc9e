//! A registry that serves an OCI layout and misbehaves as a case asks.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HashMap<String, String>,
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub cut_after: Option<usize>,
    /// Hold the connection open without sending anything.
    pub stall_before: bool,
    /// Hold the connection open after this many bytes, without sending more.
    pub stall_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut_after: None, stall_before: false, stall_after: None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Hook = Box<dyn Fn(&Seen, usize) -> Option<Reply> + Send + Sync>;

/// The server; it ends with the test.
pub struct ScriptedRegistry {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedRegistry {
    /// Serves a layout directory under any repository name. The hook may answer first; it gets the number of earlier
    /// requests for the same path.
    pub fn start(layout: &Path, hook: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, stopped, layout, hook): (_, _, _, Arc<Hook>) =
            (Arc::clone(&seen), Arc::clone(&stop), layout.to_path_buf(), Arc::new(Box::new(hook)));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (all, layout, hook) = (Arc::clone(&all), layout.clone(), Arc::clone(&hook));
                std::thread::spawn(move || serve(stream.unwrap(), &layout, &all, &hook));
            }
        });
        Self { port, seen, stop, thread: Some(thread) }
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("127.0.0.1:{}/test/app:{tag}", self.port)
    }

    /// How many requests had this in their path.
    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(mut stream: TcpStream, layout: &Path, all: &Mutex<Vec<Seen>>, hook: &Hook) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let seen = Seen { path: path.clone(), headers };
    let earlier = {
        let mut all = all.lock().unwrap();
        let earlier = all.iter().filter(|other| other.path == path).count();
        all.push(seen.clone());
        earlier
    };
    let reply = hook(&seen, earlier).unwrap_or_else(|| from_layout(layout, &seen));
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if reply.stall_before {
        let _ = reader.read_line(&mut line);
        return;
    }
    let _ = stream.write_all(head.as_bytes());
    let end = reply.cut_after.or(reply.stall_after).unwrap_or(reply.body.len()).min(reply.body.len());
    let _ = stream.write_all(&reply.body[..end]);
    if reply.stall_after.is_some() {
        // The other side gives up and closes; that ends the read.
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// An honest answer.
pub fn from_layout(layout: &Path, seen: &Seen) -> Reply {
    let path = seen.path.split('?').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let blob = |digest: &str| std::fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    if seen.path.contains("/manifests/") {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let entry = &index["manifests"][0];
        let digest = if name.starts_with("sha256:") { name } else { entry["digest"].as_str().unwrap() };
        return match blob(digest) {
            Ok(bytes) => {
                let own: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                Reply::new(200, bytes)
                    .header("Content-Type", own["mediaType"].as_str().unwrap())
                    .header("Docker-Content-Digest", digest)
            }
            Err(_) => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        };
    }
    let Ok(bytes) = blob(name) else { return Reply::new(404, "") };
    match seen
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
    {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[start..]).header("Content-Range", range)
        }
        None => Reply::new(200, bytes),
    }
}
