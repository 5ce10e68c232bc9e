//! Drivers that come, go, come back, hang and tell nonsense, at a real registry folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_agent_core::ports::RegisteredDriver;
use orlop_agent_plugins::watch_plugins;
use orlop_csi::CsiConfig;
use orlop_proto::registration::registration_server::{Registration, RegistrationServer};
use orlop_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const DEADLINE: Duration = Duration::from_secs(20);

async fn wait_for(drivers: &mut watch::Receiver<Vec<RegisteredDriver>>, names: &[&str]) {
    let there = drivers.wait_for(|list| {
        let mut found: Vec<&str> = list.iter().map(|driver| driver.name.as_str()).collect();
        found.sort_unstable();
        found == names
    });
    tokio::time::timeout(DEADLINE, there).await.unwrap_or_else(|_| panic!("no drivers {names:?}")).unwrap();
}

fn start(base: &Path, name: &str, registry: &Path) -> (CancellationToken, JoinHandle<()>) {
    let mut config = CsiConfig::new(base.join("kubelet"), base.join("data").join(name), "node-1");
    config.driver_name = name.into();
    config.socket = base.join("kubelet/plugins").join(name).join("csi.sock");
    config.registration_dir = registry.to_path_buf();
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    (cancel, tokio::spawn(async move { orlop_csi::serve(config, token).await.unwrap() }))
}

#[tokio::test]
async fn drivers_come_go_and_come_back() {
    let place = tempfile::tempdir().unwrap();
    // Deeper than a socket's address can say.
    let registry = place.path().join("x".repeat(120)).join("plugins_registry");
    let cancel = CancellationToken::new();
    let mut drivers = watch_plugins(&registry, cancel.clone()).unwrap();
    let (one, task) = start(place.path(), "one.example", &registry);
    wait_for(&mut drivers, &["one.example"]).await;
    let listed = drivers.borrow()[0].clone();
    assert_eq!((listed.node_id.as_str(), listed.max_volumes), ("node-1", None));
    assert_eq!(listed.topology["topology.one.example/node"], "node-1");
    let (two, other) = start(place.path(), "two.example", &registry.join("below"));
    wait_for(&mut drivers, &["one.example", "two.example"]).await;
    one.cancel();
    task.await.unwrap();
    wait_for(&mut drivers, &["two.example"]).await;
    let (one, task) = start(place.path(), "one.example", &registry);
    wait_for(&mut drivers, &["one.example", "two.example"]).await;
    // The next agent finds who is there.
    cancel.cancel();
    let cancel = CancellationToken::new();
    let mut drivers = watch_plugins(&registry, cancel.clone()).unwrap();
    wait_for(&mut drivers, &["one.example", "two.example"]).await;
    for (stop, task) in [(one, task), (two, other)] {
        stop.cancel();
        task.await.unwrap();
    }
    wait_for(&mut drivers, &[]).await;
    cancel.cancel();
}

/// A plugin that says what it is told to say; none hangs.
struct Plugin {
    says: Option<PluginInfo>,
    heard: Arc<Mutex<Vec<RegistrationStatus>>>,
}

#[tonic::async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        match &self.says {
            Some(info) => Ok(Response::new(info.clone())),
            None => std::future::pending().await,
        }
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.heard.lock().unwrap().push(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

fn serve(socket: PathBuf, says: Option<PluginInfo>) -> Arc<Mutex<Vec<RegistrationStatus>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let plugin = Plugin { says, heard: heard.clone() };
    let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(plugin));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    heard
}

#[tokio::test]
async fn plugins_that_hang_or_tell_nonsense_hold_up_nobody() {
    let place = tempfile::tempdir().unwrap();
    let registry = place.path().join("plugins_registry");
    std::fs::create_dir(&registry).unwrap();
    std::fs::write(registry.join("no.sock"), "").unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(registry.join("silent.sock")).unwrap();
    serve(registry.join("hangs.sock"), None);
    let info = |kind: &str, name: &str, endpoint: &str| PluginInfo {
        r#type: kind.into(),
        name: name.into(),
        endpoint: endpoint.into(),
        supported_versions: vec!["1.0.0".into()],
    };
    let refused = [
        (serve(registry.join("a.sock"), Some(info("DRAPlugin", "a", ""))), "no handler registered"),
        (serve(registry.join("b.sock"), Some(info("CSIPlugin", "../b", ""))), "no name"),
        (serve(registry.join("c.sock"), Some(info("CSIPlugin", "c.example", "/no/such.sock"))), "No such file"),
    ];
    let cancel = CancellationToken::new();
    let mut drivers = watch_plugins(&registry, cancel.clone()).unwrap();
    let (stop, task) = start(place.path(), "good.example", &registry);
    wait_for(&mut drivers, &["good.example"]).await;
    for (heard, word) in refused {
        let until = tokio::time::Instant::now() + DEADLINE;
        while heard.lock().unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < until, "nobody was told {word:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let first = heard.lock().unwrap()[0].clone();
        assert!(!first.plugin_registered && first.error.contains(word), "{first:?}");
    }
    assert_eq!(drivers.borrow().len(), 1);
    stop.cancel();
    task.await.unwrap();
    cancel.cancel();
}
