//! Hooks: when they run, where, what they are told, and what comes of those that fail.

use serde_json::{Value, json};

use crate::bench::{Bench, case};

/// A hook that runs a script of the machine.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]})
}

/// Sets a hook of each kind.
fn set(bench: &mut Bench, hooks: &[(&str, Vec<Value>)]) {
    bench.config["hooks"] = hooks.iter().map(|(kind, list)| ((*kind).to_string(), json!(list))).collect();
}

fn lines(bench: &Bench) -> Vec<String> {
    let text = std::fs::read_to_string(bench.beside("hooks")).unwrap_or_default();
    text.lines().map(String::from).collect()
}

#[test]
fn hooks() {
    case(|bench| {
        let file = bench.beside("hooks").display().to_string();
        let note = |kind: &str| hook(&format!("echo {kind} $A $HOME >> {file}"));
        std::fs::create_dir_all(bench.inside(&bench.beside("").display().to_string())).unwrap();
        let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
        let list: Vec<(&str, Vec<Value>)> = kinds.iter().map(|kind| (*kind, vec![note(kind), note(kind)])).collect();
        set(bench, &list);
        bench.config["hooks"]["startContainer"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer > /inside"]}]);
        bench.args(&["cat", "/inside"]).create();
        let twice = |kinds: &[&str]| -> Vec<String> {
            kinds.iter().flat_map(|kind| [format!("{kind} b"), format!("{kind} b")]).collect()
        };
        assert_eq!(lines(bench), twice(&kinds[..3]));
        assert!(!bench.inside("inside").exists(), "not before the start");
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        assert_eq!(bench.log(), "startContainer\n");
        assert_eq!(lines(bench), twice(&kinds[..4]));
        bench.must(&["delete", "c"]);
        assert_eq!(lines(bench), twice(&kinds));
    });
}

#[test]
fn hooks_stdin() {
    case(|bench| {
        let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        for kind in kinds {
            let folder = if kind == "startContainer" { "".into() } else { bench.beside("").display().to_string() };
            bench.config["hooks"][kind] =
                json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {folder}/{kind}")], "timeout": 5}]);
        }
        bench.config["annotations"] = json!({"dev.orlop.test": "hook"});
        bench.create();
        let pid = bench.pid();
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        bench.must(&["delete", "c"]);
        for (kind, status) in
            kinds.into_iter().zip(["creating", "creating", "creating", "created", "running", "stopped"])
        {
            let file = if kind == "startContainer" { bench.inside(kind) } else { bench.beside(kind) };
            let state: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            assert_eq!(state["status"], status, "{kind}");
            assert_eq!((state["id"].as_str(), &state["bundle"]), (Some("c"), &json!(bench.bundle())), "{kind}");
            assert_eq!(state["annotations"], json!({"dev.orlop.test": "hook"}), "{kind}");
            assert_eq!(state["pid"].as_i64(), (kind != "poststop").then_some(pid), "{kind}");
        }
    });
}

#[test]
fn where_hooks_run() {
    case(|bench| {
        let own = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap().display().to_string();
        let file = bench.beside("hooks").display().to_string();
        let root = bench.inside("").display().to_string();
        let note = hook(&format!(
            "readlink /proc/self/ns/mnt >> {file}; [ -e {root}/proc/self ] && echo proc >> {file}; true"
        ));
        set(bench, &[("createRuntime", vec![note.clone()]), ("createContainer", vec![note])]);
        bench.create();
        let lines = lines(bench);
        assert_eq!(lines[0], own, "the machine's mounts");
        let inside = std::fs::read_link(format!("/proc/{}/ns/mnt", bench.pid())).unwrap().display().to_string();
        assert_eq!(lines[1..], [inside, "proc".into()], "the container's, with its root at its place");
        bench.delete();
    });
}

/// A hook of a kind that ends the creation when it fails.
fn fails(kind: &str) {
    case(|bench| {
        let file = bench.beside("hooks").display().to_string();
        let after = hook(&format!("echo after >> {file}"));
        let stop = hook(&format!("echo stop >> {file}"));
        set(bench, &[(kind, vec![hook("echo reason >&2; exit 3"), after]), ("poststop", vec![stop])]);
        bench.script("touch /output").write();
        let said = String::from_utf8(bench.create_with(&[]).stderr).unwrap();
        for word in [kind, "exit status: 3", "reason"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(!bench.inside("output").exists());
        assert!(bench.refuse(&["state", "c"]).contains("does not exist"));
        assert_eq!(lines(bench), ["stop"]);
    });
}

#[test]
fn prestart_fail() {
    fails("prestart");
}

#[test]
fn create_runtime_fail() {
    fails("createRuntime");
}

#[test]
fn create_container_fail() {
    fails("createContainer");
}

#[test]
fn start_container_fail() {
    case(|bench| {
        set(bench, &[("startContainer", vec![json!({"path": "/bin/false", "args": ["false"]})])]);
        bench.script("touch /output").create();
        let said = bench.refuse(&["start", "c"]);
        assert!(said.contains("startContainer"), "{said}");
        bench.until_status("stopped");
        assert!(!bench.inside("output").exists());
        bench.delete();
    });
}

/// Hooks whose failure is told and changes nothing.
fn goes_on(kind: &str) {
    case(|bench| {
        let file = bench.beside("hooks").display().to_string();
        set(bench, &[(kind, vec![hook("exit 3"), hook(&format!("echo called >> {file}"))])]);
        let output = bench.write().output(&["run", "c"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains("warning") && said.contains(kind), "{said}");
        assert_eq!(lines(bench), ["called"]);
    });
}

#[test]
fn poststart_fail() {
    goes_on("poststart");
}

#[test]
fn poststop_fail() {
    goes_on("poststop");
}

/// A hook of the kind sees what has been before it.
fn sees(kind: &str, before_start: bool) {
    case(|bench| {
        let output = bench.inside("output").display().to_string();
        set(bench, &[(kind, vec![hook(&format!("echo {kind} >> {output}"))])]);
        bench.script("echo process >> /output").create();
        let early = std::fs::read_to_string(bench.inside("output")).unwrap_or_default();
        assert_eq!(early.contains(kind), before_start, "{early}");
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        bench.must(&["delete", "c"]);
        let text = std::fs::read_to_string(bench.inside("output")).unwrap();
        assert!(text.contains(kind) && text.contains("process"), "{text}");
        assert!(kind != "poststop" || text.ends_with("poststop\n"), "{text}");
    });
}

#[test]
fn prestart() {
    sees("prestart", true);
}

#[test]
fn poststart() {
    sees("poststart", false);
}

#[test]
fn poststop() {
    sees("poststop", false);
}

#[test]
fn hooks_that_take_too_long_are_ended() {
    case(|bench| {
        let mut slow = hook("sleep 1000");
        slow["timeout"] = json!(1);
        set(bench, &[("createRuntime", vec![slow])]);
        bench.write();
        let said = String::from_utf8(bench.create_with(&[]).stderr).unwrap();
        assert!(said.contains("within 1 s"), "{said}");
    });
}
