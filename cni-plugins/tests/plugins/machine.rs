//! A machine made of namespaces, its pods, and plugins that run on it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use orlop_kernel::namespace;
use serde_json::{Value, json};

/// How long a connection may take that has to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long nothing has to come for a connection to count as cut off.
const SILENCE: Duration = Duration::from_millis(400);

/// Whose plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    Ours,
    Upstream,
}

pub use Maker::{Ours, Upstream};

impl Maker {
    /// The folder of the plugins.
    pub fn folder(self) -> PathBuf {
        match self {
            Ours => ours(),
            Upstream => {
                let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/orlop");
                let folder = std::env::var_os("ORLOP_CACHE").map_or_else(home, PathBuf::from).join("cni");
                let found = folder.join("bridge").is_file();
                assert!(found, "upstream's plugins are not built: run `cargo xtask foreign`, or `cargo xtask test`");
                folder
            }
        }
    }
}

/// Our plugins, installed once per run as a user does it.
fn ours() -> PathBuf {
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let program = env!("CARGO_BIN_EXE_orlop-cni-plugins");
        let installed = Command::new(program).arg("install").arg(folder.path()).status().unwrap();
        assert!(installed.success());
        folder
    });
    folder.path().to_path_buf()
}

/// A machine: a network namespace with a raised loopback device, and a folder for state.
pub struct Machine {
    pub folder: tempfile::TempDir,
    netns: PathBuf,
    spare: std::sync::OnceLock<Namespace>,
}

/// A namespace that ends with its owner.
pub struct Namespace(pub PathBuf);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = namespace::remove_network(&self.0);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = namespace::remove_network(&self.netns);
    }
}

impl Machine {
    pub fn new() -> Machine {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let folder = tempfile::tempdir().unwrap();
        let netns = folder.path().join("machine");
        namespace::create_network(&netns).unwrap();
        namespace::raise_loopback(&netns).unwrap();
        Machine { folder, netns, spare: Default::default() }
    }

    /// A namespace for a pod.
    pub fn pod(&self, name: &str) -> Namespace {
        let path = self.folder.path().join(name);
        namespace::create_network(&path).unwrap();
        Namespace(path)
    }

    /// A namespace for calls that have to name one and don't look into it.
    pub fn any_pod(&self) -> &Namespace {
        self.spare.get_or_init(|| self.pod("spare"))
    }

    /// Where host-local keeps its addresses.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("networks")
    }

    /// Does something on the machine.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::in_network(&self.netns, work).unwrap()
    }

    /// Runs a program on the machine to its success.
    pub fn run(&self, line: &str) -> String {
        self.on(|| run(line))
    }

    /// What `ip -j` says on the machine.
    pub fn ip(&self, line: &str) -> Value {
        self.on(|| ip(line))
    }

    /// Addresses that are kept.
    pub fn leases(&self, network: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join(network)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut leases: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        leases.sort();
        leases
    }

    /// The machine's ends of pairs.
    pub fn pairs(&self) -> Vec<String> {
        let links = self.ip("link");
        let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with("veth")).map(str::to_string).collect()
    }

    /// Rules with a comment, and chains that were made for one container.
    pub fn rules(&self) -> Vec<String> {
        let ruleset = self.run("nft list ruleset");
        let of_container = |line: &&str| {
            let line = line.trim();
            line.contains(" comment \"") && !line.starts_with("comment") || line.contains("chain cni-br-")
        };
        ruleset.lines().filter(of_container).map(|line| line.trim().to_string()).collect()
    }

    /// Waits until the kernel has removed the links of namespaces that are gone, which takes it a while.
    pub fn wait_for_pairs_to_go(&self) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !self.pairs().is_empty() {
            assert!(std::time::Instant::now() < end, "{:?} are still there", self.pairs());
            std::thread::yield_now();
        }
    }

    /// Nothing of any container is there.
    pub fn assert_empty(&self, network: &str) {
        assert_eq!(self.pairs(), Vec::<String>::new());
        assert_eq!(self.rules(), Vec::<String>::new());
        assert_eq!(self.leases(network), Vec::<String>::new());
    }

    /// Another machine beside this one, joined by a pair: ours has `10.200.0.1` and `fd99::1`, it has `.2`.
    pub fn neighbour(&self) -> Namespace {
        let neighbour = self.pod("neighbour");
        self.run(&format!("ip link add wire type veth peer name wire netns {}", neighbour.0.display()));
        self.run("ip link set wire up");
        self.run("ip addr add 10.200.0.1/24 dev wire");
        self.run("ip addr add fd99::1/64 dev wire nodad");
        neighbour.run("ip link set lo up");
        neighbour.run("ip link set wire up");
        neighbour.run("ip addr add 10.200.0.2/24 dev wire");
        neighbour.run("ip addr add fd99::2/64 dev wire nodad");
        // The kernel tells its IPv6 a little later that a link is ready.
        let is_up = |links: Value| links[0]["operstate"] == "UP";
        while !is_up(self.ip("link show dev wire")) || !is_up(neighbour.ip("link show dev wire")) {
            std::thread::yield_now();
        }
        neighbour
    }
}

impl Namespace {
    /// Does something in it.
    pub fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::in_network(&self.0, work).unwrap()
    }

    /// Runs a program in it to its success.
    pub fn run(&self, line: &str) -> String {
        self.on(|| run(line))
    }

    /// What `ip -j` says in it.
    pub fn ip(&self, line: &str) -> Value {
        self.on(|| ip(line))
    }

    /// Answers TCP connections with the address that they come from, and UDP packets likewise, until the test ends.
    pub fn serve(&self, address: SocketAddr) {
        let (tcp, udp) = self.on(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = (&stream).write_all(peer.to_string().as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
            }
        });
    }
}

/// Connects from here and gives the address that the server saw.
pub fn call_tcp(to: &str) -> Option<IpAddr> {
    let begin = std::time::Instant::now();
    let call = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), CONNECT_MAX)?;
        stream.set_read_timeout(Some(CONNECT_MAX))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    match call() {
        Ok(text) => text.parse().ok(),
        Err(error) => {
            eprintln!("{to} after {:?}: {error}", begin.elapsed());
            None
        }
    }
}

/// Whether nothing comes back from there: cut off or refused.
pub fn is_cut_off(to: &str) -> bool {
    TcpStream::connect_timeout(&to.parse().unwrap(), SILENCE).is_err()
}

/// The same by UDP, from a socket that lives on.
pub fn call_udp(socket: &UdpSocket, to: &str) -> Option<IpAddr> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(b"x", to).ok()?;
    let length = socket.recv(&mut buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).unwrap().parse().ok()
}

/// Runs a program to its success.
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install iproute2 nftables"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip(line: &str) -> Value {
    serde_json::from_str(&run(&format!("ip -d -j {line}"))).unwrap_or_else(|_| json!([]))
}

/// A call of a plugin.
#[derive(Clone)]
pub struct Call {
    pub maker: Maker,
    pub plugin: &'static str,
    pub command: &'static str,
    pub config: Value,
    pub container: String,
    pub netns: PathBuf,
    pub ifname: &'static str,
    pub args: String,
}

impl Call {
    pub fn new(maker: Maker, plugin: &'static str, command: &'static str, config: &Value, container: &str) -> Call {
        let (config, container) = (config.clone(), container.to_string());
        let (netns, ifname, args) = (PathBuf::new(), "eth0", String::new());
        Call { maker, plugin, command, config, container, netns, ifname, args }
    }

    pub fn pod(mut self, pod: &Namespace) -> Call {
        self.netns = pod.0.clone();
        self
    }

    pub fn args(mut self, args: &str) -> Call {
        self.args = args.into();
        self
    }

    pub fn previous(mut self, result: &Value) -> Call {
        self.config["prevResult"] = result.clone();
        self
    }

    /// The process, not started yet.
    pub fn command(&self) -> Command {
        let folder = self.maker.folder();
        let mut command = Command::new(folder.join(self.plugin));
        command
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it on a machine: its answer, or its error.
    pub fn run(&self, machine: &Machine) -> Result<Value, Value> {
        machine.on(|| {
            let mut child = self.command().spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes());
            let output = child.wait_with_output().unwrap();
            let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            match output.status.success() {
                true => Ok(said),
                false if said["code"].is_u64() => Err(said),
                false => panic!("{} {}: {output:?}", self.plugin, self.command),
            }
        })
    }

    /// Runs it to its success.
    pub fn done(&self, machine: &Machine) -> Value {
        self.run(machine).unwrap_or_else(|error| panic!("{:?} {} {}: {error}", self.maker, self.plugin, self.command))
    }

    /// Runs it and gives the code and the words of its error.
    pub fn refused(&self, machine: &Machine) -> (u64, String) {
        let error = self.run(machine).expect_err("it has to fail");
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_string();
        (error["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")))
    }
}

/// The configuration of a usual network, of both families.
pub fn network(machine: &Machine, name: &str) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": name,
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": true,
        "ipMasq": true,
        "ipMasqBackend": "nftables",
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "dataDir": machine.data_dir(),
            "ranges": [[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd77::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

/// The first address of a family in a result.
pub fn address_of(result: &Value, v6: bool) -> IpAddr {
    let addresses = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
    let mut addresses = addresses.map(|text| text.split('/').next().unwrap().parse::<IpAddr>().unwrap());
    addresses.find(|address| address.is_ipv6() == v6).unwrap()
}
