//! Running kubectl.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orlop_apiserver::pki::Client;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::real::foreign;
use crate::server::Server;

/// Longest run of one command.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server, a home folder, and kubectl.
pub struct Shell {
    _server: Server,
    home: tempfile::TempDir,
    kubeconfig: PathBuf,
}

/// What a command has done.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Shell {
    pub async fn start() -> Shell {
        let server = Server::start(BTreeMap::new()).await;
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        server.pki.kubeconfig(Client::Admin, &server.url).unwrap().write(&kubeconfig).unwrap();
        Shell { _server: server, home, kubeconfig }
    }

    /// The folder that is `HOME` of every command.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command that is ready to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(foreign("kubectl"));
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run_with(&self, mut command: Command, input: &str) -> Run {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("kubectl ends").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    pub async fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(self.command(arguments), "").await
    }

    /// A command that must succeed without a warning; its output.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments).await;
        assert!(run.code == 0 && run.err.is_empty(), "kubectl {arguments:?}: {run:?}");
        run.out
    }

    /// A command that must fail; what it complains of.
    pub async fn fails(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments).await;
        assert_ne!(run.code, 0, "kubectl {arguments:?}: {run:?}");
        run.err
    }

    /// Applies a manifest; returns what it says.
    pub async fn apply(&self, manifest: &str) -> String {
        let run = self.run_with(self.command(&["apply", "-f", "-"]), manifest).await;
        assert!(run.code == 0 && run.err.is_empty(), "{run:?}");
        run.out
    }
}

/// The words of a line of a table that begins with a name.
pub fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("{name} is not in\n{table}")).split_whitespace().collect()
}
