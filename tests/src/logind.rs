//! A stand-in for logind on a real bus: where systemd has not booted the machine, nobody else tells of shutdowns. It hands
//! out locks, says when the machine goes down, and reads its configuration again when systemd would make it.

use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, Variant};

use crate::place::debian;
use crate::world::{Daemon, until};

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SYSTEMD: &str = "org.freedesktop.systemd1";
/// `InhibitDelayMaxSec` unless it is configured.
const DELAY: Duration = Duration::from_secs(5);

/// A lock that was handed out: its holder has the other end of the pipe.
struct Lock {
    words: [String; 4],
    end: PipeReader,
}

impl Lock {
    fn is_held(&self) -> bool {
        let mut ends = [PollFd::new(&self.end, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut ends, Some(&now)).expect("poll a pipe");
        !ends[0].revents().contains(PollFlags::HUP)
    }
}

struct State {
    delay: Duration,
    going_down: bool,
    locks: Vec<Lock>,
    drop_ins: PathBuf,
}

/// A bus with logind on it.
pub struct Logind {
    state: Arc<Mutex<State>>,
    connection: Connection,
    runtime: Runtime,
    _bus: Daemon,
}

/// Where the bus of a folder is, as D-Bus writes it.
#[must_use]
pub fn address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus.sock").display())
}

impl Logind {
    /// Starts a bus in the folder, and logind on it. `drop_ins` is where its configuration is.
    ///
    /// # Panics
    /// When they can't be started.
    #[must_use]
    pub fn start(folder: &Path, drop_ins: &Path) -> Logind {
        let (socket, file) = (folder.join("bus.sock"), folder.join("bus.conf"));
        let _ = std::fs::remove_file(&socket);
        let address = address(folder);
        let settings = format!(
            "<busconfig><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>"
        );
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(debian("dbus-daemon", "dbus-daemon"));
        command.arg("--config-file").arg(&file).args(["--nofork", "--nopidfile", "--nosyslog"]);
        let bus = Daemon::start(command, folder.join("bus.log"));
        until("the bus is there", || socket.exists().then_some(()));
        let state = State { delay: DELAY, going_down: false, locks: Vec::new(), drop_ins: drop_ins.to_owned() };
        let state = Arc::new(Mutex::new(state));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connection = runtime.block_on(async {
            let connection = Builder::address(address.as_str()).build().await.expect("connect with the bus");
            let calls = MessageStream::from(&connection);
            tokio::spawn(serve(connection.clone(), calls, state.clone()));
            for name in [NAME, SYSTEMD] {
                connection.request_name(name).await.expect("take a name");
            }
            connection
        });
        Logind { state, connection, runtime, _bus: bus }
    }

    /// Who holds locks now: what, who, why and mode of each.
    #[must_use]
    pub fn locks(&self) -> Vec<[String; 4]> {
        let state = self.state.lock().unwrap();
        state.locks.iter().filter(|lock| lock.is_held()).map(|lock| lock.words.clone()).collect()
    }

    /// Ends logind and starts it anew on the same bus: it knows the locks again, and of no shutdown.
    ///
    /// # Panics
    /// When the bus is gone.
    pub fn restart(&self) {
        self.runtime.block_on(self.connection.release_name(NAME)).expect("give a name back");
        self.state.lock().unwrap().going_down = false;
        self.runtime.block_on(self.connection.request_name(NAME)).expect("take a name");
    }

    /// Says that the machine goes down, or that it doesn't.
    ///
    /// # Panics
    /// When the bus is gone.
    pub fn prepare(&self, going_down: bool) {
        self.state.lock().unwrap().going_down = going_down;
        let body = (going_down,);
        let signal = self.connection.emit_signal(None::<&str>, PATH, MANAGER, "PrepareForShutdown", &body);
        self.runtime.block_on(signal).expect("emit a signal");
    }
}

async fn serve(connection: Connection, mut calls: MessageStream, state: Arc<Mutex<State>>) {
    while let Some(Ok(call)) = calls.next().await {
        if call.message_type() == Type::MethodCall {
            answer(&connection, &call, &state).await;
        }
    }
}

async fn answer(connection: &Connection, call: &Message, state: &Mutex<State>) {
    let (header, body) = (call.header(), call.body());
    let method = header.member().map(|name| name.to_string()).unwrap_or_default();
    let answered = match method.as_str() {
        "Get" => {
            let (_, property): (&str, &str) = body.deserialize().expect("a property");
            let value = {
                let state = state.lock().unwrap();
                match property {
                    "InhibitDelayMaxUSec" => Variant::from(state.delay.as_micros() as u64),
                    "PreparingForShutdown" => Variant::from(state.going_down),
                    other => panic!("there is no property {other}"),
                }
            };
            connection.reply(&header, &value).await
        }
        "Inhibit" => {
            let (what, who, why, mode): (String, String, String, String) = body.deserialize().expect("a lock");
            let (end, lock) = std::io::pipe().expect("a pipe");
            state.lock().unwrap().locks.push(Lock { words: [what, who, why, mode], end });
            connection.reply(&header, &zbus::Fd::from(OwnedFd::from(lock))).await
        }
        "KillUnit" => {
            let words: (&str, &str, i32) = body.deserialize().expect("a signal");
            assert_eq!(words, ("systemd-logind.service", "all", 1));
            {
                let mut state = state.lock().unwrap();
                state.delay = configured(&state.drop_ins).unwrap_or(DELAY);
            }
            connection.reply(&header, &()).await
        }
        other => panic!("there is no method {other}"),
    };
    answered.expect("answer a call");
}

/// The delay that the last file by name sets.
fn configured(folder: &Path) -> Option<Duration> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "conf"));
    files.sort();
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        let (_, text) = text.split_once("[Login]\n")?;
        text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec=")?.parse().ok())
    };
    files.iter().rev().find_map(read).map(Duration::from_secs)
}
