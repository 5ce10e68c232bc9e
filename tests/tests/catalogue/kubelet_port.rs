//! The kubelet port without the right to it, and with paths that climb: cases 25, 27.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_tests::world::run;
use serde_json::{Value, json};

use crate::agent::with_node;
use orlop_tests::case::Case;

/// Every endpoint, and some that are none.
const ENDPOINTS: [(&str, &str); 24] = [
    ("GET", "/"),
    ("GET", "/pods"),
    ("GET", "/pods/"),
    ("GET", "/runningpods/"),
    ("GET", "/metrics"),
    ("GET", "/metrics/cadvisor"),
    ("GET", "/metrics/resource"),
    ("GET", "/metrics/probes"),
    ("GET", "/stats/summary"),
    ("GET", "/spec/"),
    ("GET", "/healthz"),
    ("GET", "/healthz/syncloop"),
    ("GET", "/configz"),
    ("GET", "/logs/"),
    ("GET", "/debug/pprof/"),
    ("GET", "/containerLogs/NS/POD/c"),
    ("GET", "/exec/NS/POD/c?command=id&output=1"),
    ("POST", "/exec/NS/POD/c?command=id&output=1"),
    ("GET", "/attach/NS/POD/c?output=1"),
    ("POST", "/portForward/NS/POD?port=80"),
    ("POST", "/run/NS/POD/c?cmd=id"),
    ("POST", "/checkpoint/NS/POD/c"),
    ("GET", "/nothing"),
    ("DELETE", "/pods"),
];

fn openssl(folder: &Path, words: &str) {
    run(Command::new("openssl").args(words.split(' ')).current_dir(folder));
}

/// A key and a certificate for `/O=system:masters/CN=NAME` by an authority.
fn certificate(folder: &Path, name: &str, authority: (&Path, &Path), purpose: &str, days: &str) -> PathBuf {
    std::fs::write(folder.join(format!("{name}.ext")), format!("extendedKeyUsage={purpose}\n")).unwrap();
    openssl(
        folder,
        &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /O=system:masters/CN={name}"),
    );
    let (ca, key) = (authority.0.display(), authority.1.display());
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA {ca} -CAkey {key} -set_serial 77 -days {days} -extfile {name}.ext -out {name}.crt"
        ),
    );
    let both = ["crt", "key"].map(|kind| std::fs::read_to_string(folder.join(format!("{name}.{kind}"))).unwrap());
    let whole = folder.join(format!("{name}.pem"));
    std::fs::write(&whole, both.concat()).unwrap();
    whole
}

struct Node<'a> {
    case: &'a Case<'a>,
    address: String,
    port: u64,
    healthz: u64,
    keys: tempfile::TempDir,
}

impl<'a> Node<'a> {
    fn new(case: &'a Case<'a>) -> Node<'a> {
        let node = case.cluster.api.get(&format!("/api/v1/nodes/{}", case.cluster.node_name));
        let address = node["status"]["addresses"][0]["address"].as_str().unwrap().to_string();
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap();
        let record = std::fs::read(case.cluster.world.root.join("state/instance.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let healthz = record["healthzPort"].as_u64().expect("a port for health checks");
        Node { case, address, port, healthz, keys: tempfile::tempdir().unwrap() }
    }

    /// The code and the body of an answer; code 0 when the connection is not taken.
    fn ask(&self, method: &str, url: &str, more: &[&str]) -> (u16, String) {
        let mut curl = self.case.cluster.world.command("curl");
        curl.args(["--silent", "--insecure", "--path-as-is", "--max-time", "10", "--request", method]);
        let output = curl.args(["--write-out", "\n%{http_code}", url]).args(more).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (code.parse().unwrap_or(0), body.to_string())
    }

    fn kubelet(&self, path: &str) -> String {
        format!("https://{}:{}{path}", self.address, self.port)
    }

    fn own_authority(&self) -> (PathBuf, PathBuf) {
        let pki = self.case.cluster.world.root.join("state/pki");
        (pki.join("ca.crt"), pki.join("ca.key"))
    }

    fn certificate(&self, name: &str, authority: (&Path, &Path), purpose: &str, days: &str) -> String {
        certificate(self.keys.path(), name, authority, purpose, days).display().to_string()
    }
}

fn sleeper() -> Value {
    json!({"containers": [{"command": ["sleep", "1000"]}]})
}

#[test]
fn case_25_the_kubelet_port_without_the_right_to_it() {
    with_node(
        "case-25",
        |images| images.add("localhost/plain:1", &json!({})),
        |case| {
            case.make_pod("here", sleeper());
            case.until_ready("here");
            let node = Node::new(case);
            let (ca, key) = node.own_authority();
            let own = (ca.as_path(), key.as_path());
            openssl(
                node.keys.path(),
                "req -x509 -newkey rsa:2048 -nodes -keyout foreign.key -out foreign.crt -days 1 -subj /CN=foreign",
            );
            let (foreign_ca, foreign_key) =
                (node.keys.path().join("foreign.crt"), node.keys.path().join("foreign.key"));
            let foreign = (foreign_ca.as_path(), foreign_key.as_path());
            let good = node.certificate("good", own, "clientAuth", "1");
            let bad = [
                ("no credentials", None),
                ("another authority", Some(node.certificate("stranger", foreign, "clientAuth", "1"))),
                ("expired", Some(node.certificate("expired", own, "clientAuth", "-1"))),
                ("a server's", Some(node.certificate("server", own, "serverAuth", "1"))),
            ];
            let (code, body) = node.ask("GET", &node.kubelet("/pods"), &["--cert", &good]);
            assert_eq!(code, 200, "the right one gets in: {body}");
            for (what, certificate) in &bad {
                for (method, path) in ENDPOINTS {
                    let url = node.kubelet(&path.replace("NS", &case.namespace).replace("POD", "here"));
                    let more: Vec<&str> = certificate.iter().flat_map(|file| ["--cert", file]).collect();
                    let (code, body) = node.ask(method, &url, &more);
                    // A certificate that proves nothing may end the handshake, too.
                    assert!(
                        matches!(code, 401 | 403) || (code == 0 && certificate.is_some()),
                        "{what}: {method} {path}: {code} {body}"
                    );
                    assert!(!body.contains("uid=") && !body.contains("here"), "{what}: {method} {path}: {body}");
                }
            }
            let (code, _) = node.ask("GET", &node.kubelet("/pods"), &["--header", "Authorization: Bearer nonsense"]);
            assert_eq!(code, 401);
            // The port for reading that kubelets had, and the one for health checks.
            for address in ["127.0.0.1", &node.address] {
                assert_eq!(node.ask("GET", &format!("http://{address}:10255/pods"), &[]).0, 0, "{address}");
            }
            let health =
                |address: &str, path: &str| node.ask("GET", &format!("http://{address}:{}{path}", node.healthz), &[]).0;
            assert_eq!(health("127.0.0.1", "/healthz"), 200);
            assert_eq!(health(&node.address, "/healthz"), 0, "it listens on more than loopback");
            for path in ["/", "/pods", "/metrics", "/debug/pprof/", "/configz", "/healthz/../pods", "/logs/"] {
                assert_eq!(health("127.0.0.1", path), 404, "{path}");
            }
        },
    );
}

#[test]
fn case_27_paths_that_climb_out_of_the_logs() {
    with_node(
        "case-27",
        |images| images.add("localhost/plain:1", &json!({})),
        |case| {
            case.make_pod("here", json!({"containers": [{"command": ["sh", "-c", "echo said; sleep 1000"]}]}));
            case.until_ready("here");
            let node = Node::new(case);
            let (ca, key) = node.own_authority();
            let good = node.certificate("good", (ca.as_path(), key.as_path()), "clientAuth", "1");
            let canary = node.keys.path().join("canary");
            std::fs::write(&canary, "2026-01-01T00:00:00.000000000Z stdout F CANARY\n").unwrap();
            let logs = case.cluster.world.root.join("log/pods");
            std::os::unix::fs::symlink(&canary, logs.join("link.log")).unwrap();
            let namespace = &case.namespace;
            let up = "..%2f".repeat(12);
            let shown = canary.display().to_string();
            let encoded = shown.trim_start_matches('/').replace('/', "%2f");
            let paths = [
                "/logs/..%2f..%2fetc%2fshadow".to_string(),
                "/logs/..%252f..%252fetc%252fshadow".into(),
                "/logs/../../etc/shadow".into(),
                format!("/logs/{up}{encoded}"),
                "/logs/pods/link.log".into(),
                "/logs/link.log".into(),
                format!("/containerLogs/{namespace}/here/..%2fx"),
                format!("/containerLogs/{namespace}/here/{up}{encoded}"),
                format!("/containerLogs/{namespace}/..%2f..%2flink.log/c"),
                format!("/containerLogs/{namespace}%2fhere/c/c"),
                format!("/containerLogs/a%2f..%2f{namespace}/here/c"),
                format!("/containerLogs/{namespace}/here/c%00"),
                format!("/containerLogs/../{namespace}/here/c"),
                format!("/containerLogs/{namespace}/here/c/../../../../pods"),
                "/containerLogs/%2e%2e/%2e%2e/%2e%2e".into(),
            ];
            for path in &paths {
                let proxy = format!("/api/v1/nodes/{}/proxy{path}", case.cluster.node_name);
                let (direct, answer) = node.ask("GET", &node.kubelet(path), &["--cert", &good]);
                assert!((400..500).contains(&direct), "{path}: {direct} {answer}");
                let (code, body) = case.cluster.api.send("GET", &proxy, None).unwrap();
                for text in [answer, body.to_string()] {
                    assert!(!text.contains("CANARY") && !text.contains("root:"), "{path}: {code} {text}");
                }
            }
            let (code, _) =
                node.ask("GET", &node.kubelet(&format!("/containerLogs/{namespace}/here/c")), &["--cert", &good]);
            assert_eq!(code, 200, "the plain path works");

            // What a log says when somebody has put a link in its place.
            let file = std::fs::read_dir(&logs).unwrap().flatten().map(|entry| entry.path().join("c/0.log"));
            let file = file.into_iter().find(|file| file.exists()).expect("the container's log");
            std::fs::rename(&file, file.with_extension("away")).unwrap();
            std::os::unix::fs::symlink(&canary, &file).unwrap();
            let (code, body) =
                node.ask("GET", &node.kubelet(&format!("/containerLogs/{namespace}/here/c")), &["--cert", &good]);
            assert!(!body.contains("CANARY"), "{code} {body}");
            std::fs::rename(file.with_extension("away"), &file).unwrap();
            std::fs::remove_file(logs.join("link.log")).unwrap();
        },
    );
}
