//! `orlop cri` in a world, and the files by which crictl makes pods and containers there.

use serde_json::{Value, json};

use crate::world::{Daemon, World, read, until};

/// A world with a running CRI server and an image.
///
/// # Panics
/// When the server doesn't answer.
#[must_use]
pub fn start() -> (World, Daemon) {
    let world = World::new();
    let daemon = serve(&world, &[]);
    world.load_image();
    (world, daemon)
}

/// A CRI server with these arguments, which answers.
///
/// # Panics
/// When it doesn't.
#[must_use]
pub fn serve(world: &World, arguments: &[&str]) -> Daemon {
    let mut command = world.orlop();
    command.arg("cri").args(arguments);
    let daemon = Daemon::start(command, world.folder().join("cri.log"));
    until("the server answers", || world.crictl().arg("version").output().ok()?.status.success().then_some(()));
    daemon
}

/// Files that describe a pod and its container `c`, whose message has `extra` in it.
///
/// # Panics
/// When they can't be written.
#[must_use]
pub fn files(world: &World, name: &str, args: &[&str], extra: Value) -> (String, String) {
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0},
        "log_directory": world.folder().join("logs"),
        "hostname": name,
        "linux": {"cgroup_parent": format!("/orlop-test-{}/{name}", std::process::id())},
    });
    let mut container = json!({
        "metadata": {"name": "c"},
        "image": {"image": "localhost/test:1"},
        "command": args,
        "log_path": format!("{name}.log"),
        "linux": {"security_context": {"namespace_options": {"pid": 1}}},
    });
    if let (Value::Object(container), Value::Object(extra)) = (&mut container, extra) {
        container.extend(extra);
    }
    (write(world, &format!("{name}-pod"), &pod), write(world, &format!("{name}-container"), &container))
}

/// A file of the world with a message in it.
///
/// # Panics
/// When it can't be written.
#[must_use]
pub fn write(world: &World, name: &str, message: &Value) -> String {
    let path = world.folder().join(format!("{name}.json"));
    std::fs::write(&path, message.to_string()).expect("write the message");
    path.display().to_string()
}

/// What crictl says of one object.
///
/// # Panics
/// When it says no JSON.
#[must_use]
pub fn inspect(world: &World, verb: &str, id: &str) -> Value {
    serde_json::from_str(&read(world.crictl().args([verb, id]))).expect("crictl answers in JSON")
}
