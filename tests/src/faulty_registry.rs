//! A registry that does what registries shouldn't: refuses, is busy, breaks, cuts its streams, sends other bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::world::World;

/// Where it listens, on loopback.
pub const PORT: u16 = 5001;

/// Bytes of the only layer, and how it is asked for: `faulty/<fault>:1`.
const LAYER: &[u8] = &[b'x'; 70_000];

/// Serves in a world until the world ends. The faults are names of repositories: `denied`, `busy`, `broken`, `cut`,
/// `other`, `garbage`.
///
/// # Panics
/// When it can't listen.
pub fn start(world: &World) {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", world.pid())).expect("the world's network");
    // A namespace belongs to a thread; the listener made in it stays there.
    let listener = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter the world's network");
        TcpListener::bind(("127.0.0.1", PORT)).expect("listen")
    });
    let listener = listener.join().expect("a listener");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = answer(stream);
            });
        }
    });
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn config() -> Vec<u8> {
    let layer = digest(LAYER);
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    )
    .into_bytes()
}

fn manifest() -> Vec<u8> {
    let config = config();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        digest(&config),
        config.len(),
        digest(LAYER),
        LAYER.len()
    )
    .into_bytes()
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let mut send = |code: &str, headers: &str, length: usize, body: &[u8]| -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {code}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")?;
        stream.write_all(body)
    };
    let fault = path.split('/').nth(3).unwrap_or_default();
    let (is_manifest, is_layer) = (path.contains("/manifests/"), path.ends_with(&digest(LAYER)));
    match fault {
        "denied" => send("401 Unauthorized", "WWW-Authenticate: Basic realm=\"no\"\r\n", 0, b""),
        "busy" => send("429 Too Many Requests", "Retry-After: 1\r\n", 0, b""),
        "broken" => send("500 Internal Server Error", "", 0, b""),
        "garbage" if is_manifest => {
            send("200 OK", "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n", 7, b"{\"what\"")
        }
        _ if is_manifest => {
            let manifest = manifest();
            let headers = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
            send("200 OK", headers, manifest.len(), &manifest)
        }
        "cut" if is_layer => send("200 OK", "", LAYER.len(), &LAYER[..20_000]),
        "other" if is_layer => send("200 OK", "", LAYER.len(), &[b'y'; LAYER.len()]),
        _ if is_layer => send("200 OK", "", LAYER.len(), LAYER),
        _ if path.contains("/blobs/") => send("200 OK", "", config().len(), &config()),
        _ => send("200 OK", "", 2, b"{}"),
    }
}
