//! The configuration of `orlop cri`, read again on SIGHUP while pods run.

use orlop_tests::place::debian;
use orlop_tests::world::{Daemon, World, read, run, until};
use serde_json::Value;

fn info(world: &World, verb: &[&str]) -> Value {
    serde_json::from_str(&read(world.crictl().args(verb))).unwrap()
}

/// Lays a file over the configuration and tells the daemon; returns what it logs from then on, up to these words.
fn reload(world: &World, daemon: &Daemon, text: &str, words: &str) -> String {
    std::fs::write(world.folder().join("cri.toml.d/50-test.toml"), text).unwrap();
    let before = daemon.log().len();
    run(world.command("kill").args(["-HUP", &daemon.pid().to_string()]));
    until("the daemon says so", || {
        let said = daemon.log().split_off(before);
        said.contains(words).then_some(said)
    })
}

#[test]
fn what_can_be_changed_counts_at_once_and_mistakes_change_nothing() {
    let world = World::new();
    std::fs::create_dir(world.folder().join("cri.toml.d")).unwrap();
    let file = world.folder().join("cri.toml");
    std::fs::write(&file, "version = 1\n[log]\nfilter = 'info'\n").unwrap();
    let mut command = world.command("env");
    let orlop = world.orlop();
    // nsenter's own words come first in a command of the world.
    command.args(["-u", "RUST_LOG"]).args(orlop.get_args().skip_while(|word| *word != "--").skip(1));
    command.args(["cri", "--cri-config"]).arg(&file);
    let mut daemon = Daemon::start(command, world.folder().join("cri.log"));
    until("the server answers", || world.crictl().arg("version").output().unwrap().status.success().then_some(()));
    world.load_image();
    let pinned = || info(&world, &["images", "-o", "json"])["images"][0]["pinned"] == true;
    let handlers = || info(&world, &["info"])["runtimeHandlers"].to_string();
    assert!(!pinned() && !handlers().contains("runc"));

    let runc = debian("runc", "runc");
    let text = format!(
        "[images]\npinned = ['localhost/*']\n[runtimes.runc]\nprogram = {runc:?}\n[streaming]\naddress = '127.0.0.1:1'\n"
    );
    let said = reload(&world, &daemon, &text, "the configuration was read again");
    for (key, words) in
        [("images.pinned", "applied"), ("runtimes.runc", "applied"), ("streaming.address", "needs a restart")]
    {
        let line = said.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}: {said}"));
        assert!(line.contains(words), "{line}");
    }
    assert!(pinned() && handlers().contains("runc"), "{said}");

    for (text, words) in [
        ("[images]\npined = []\n", "50-test.toml"),
        ("[images]\npinned = ['a b']\n", "a b"),
        ("[log]\nfilter = '='\n", "log.filter"),
        ("[[[", "no TOML"),
    ] {
        let said = reload(&world, &daemon, text, "everything is as before");
        assert!(said.contains(words), "{text}: {said}");
        assert!(pinned() && handlers().contains("runc"), "{text}");
    }

    let said = reload(&world, &daemon, "[log]\nfilter = 'orlop_cri_server=trace,info'\n", "was read again");
    assert!(said.contains("log.filter") && !said.contains("streaming.address"), "{said}");
    assert!(!pinned() && !handlers().contains("runc"));
    daemon.check();
}
