//! The sample: a web server of one page that tells which pod answered.
//!
//! It listens on `PORT` (8080), answers `/` with the page and `/healthz` with `ok`, and ends on SIGTERM: as process 1 of
//! its container it has to say so itself, for the kernel gives that one no default.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// No request line or header is read past this, in bytes.
const REQUEST_BYTES_MAX: u64 = 16 << 10;

fn main() -> std::io::Result<()> {
    end_on_sigterm()?;
    let port = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080u16);
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("hello listens on port {port}");
    for stream in listener.incoming() {
        match stream.and_then(answer) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("request failed: {error}"),
        }
    }
    Ok(())
}

/// Waits for SIGTERM on a thread of its own; all others are born with the signal blocked.
fn end_on_sigterm() -> std::io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        println!("hello ends");
        std::process::exit(0)
    });
    Ok(())
}

/// Reads one request, answers it and tells what was asked.
fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(REQUEST_BYTES_MAX));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let (status, body) = match path {
        "/healthz" => ("200 OK", "ok\n".to_string()),
        "/" => ("200 OK", page()),
        _ => ("404 Not Found", "not found\n".to_string()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(format!("{} {status}", request.trim_end()))
}

/// The page: the pod's own facts, as the downward API gave them.
fn page() -> String {
    let fact = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
    format!(
        "<!doctype html>\n<title>Orlop</title>\n<h1>Hello from Orlop</h1>\n<p>pod {} in namespace {} on node {}, address {}</p>\n",
        fact("POD_NAME"),
        fact("POD_NAMESPACE"),
        fact("NODE_NAME"),
        fact("POD_IP")
    )
}
