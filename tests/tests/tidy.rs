//! The rules of the house: who may depend on whom, where `unsafe` may be, how long a file may get.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file longer than this, in lines, needs a place in the list below.
const FILE_LINES_MAX: usize = 500;

/// The layers, lowest first: a crate depends only on crates of a lower layer. Crates of one layer don't know one
/// another.
const LAYERS: &[(&str, &[&str])] = &[
    ("wire and kernel", &["orlop-proto", "orlop-kernel"]),
    ("containers", &["orlop-container", "orlop-systemd"]),
    ("pure", &["orlop-agent-core", "orlop-cri-spec"]),
    (
        "rim",
        &[
            "orlop-image",
            "orlop-network",
            "orlop-streaming",
            "orlop-csi",
            "orlop-apiserver",
            "orlop-agent-api",
            "orlop-agent-runtime",
            "orlop-agent-volumes",
            "orlop-agent-resources",
            "orlop-agent-plugins",
            "orlop-agent-node",
        ],
    ),
    (
        "doors",
        &[
            "orlop-cri-server",
            "orlop-agent-pods",
            "orlop-agent-server",
            "orlop-shim",
            "orlop-runtime",
            "orlop-cni-plugins",
            "orlop-pause",
        ],
    ),
    ("wiring", &["orlop-agent-daemon"]),
    ("program", &["orlop", "xtask", "orlop-hello"]),
    ("tests", &["orlop-tests"]),
];

/// Crates in which `unsafe` is allowed: the kernel's face, and pause, which has no library below it.
const UNSAFE_CRATES: [&str; 2] = ["kernel", "cri/pause"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The packages of the workspace, as cargo describes them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(workspace());
    let output = command.output().expect("run cargo metadata");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let described: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    described["packages"].as_array().expect("a list of packages").clone()
}

#[test]
fn dependencies_go_down_only() {
    let packages = packages();
    let layer: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(level, (_, crates))| crates.iter().map(move |name| (*name, level)))
        .collect();
    let name_of = |value: &Value| value["name"].as_str().expect("packages and dependencies have names").to_string();
    let ours: BTreeSet<String> = packages.iter().map(name_of).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = &*name_of(package);
        let Some(level) = layer.get(name) else {
            wrong.push(format!("{name} has no layer: give it one in tests/tests/tidy.rs and in ARCHITECTURE.md"));
            continue;
        };
        // Of no kind: neither for tests nor for build scripts.
        let normal = package["dependencies"].as_array().into_iter().flatten().filter(|entry| entry["kind"].is_null());
        for dependency in normal.map(name_of).filter(|dependency| ours.contains(dependency)) {
            if layer.get(&*dependency).is_none_or(|below| below >= level) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_workspace() {
    let mut wrong = Vec::new();
    for manifest in files(&workspace(), "Cargo.toml").into_iter().filter(|path| path != &workspace().join("Cargo.toml"))
    {
        let text = std::fs::read_to_string(&manifest).unwrap();
        if !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{}: [lints] workspace = true is missing", manifest.display()));
        }
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let names_version = line.contains("version = \"")
                || line.split_once(" = ").is_some_and(|(_, value)| value.starts_with('"'));
            if section.contains("dependencies") && names_version {
                wrong.push(format!("{}: `{line}`: versions are set in the root Cargo.toml", manifest.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_in_the_kernel_crate() {
    let allowed: Vec<PathBuf> = UNSAFE_CRATES.iter().map(|folder| workspace().join(folder)).collect();
    let word = ["unsafe", " "].concat();
    let wrong: Vec<String> = files(&workspace(), ".rs")
        .into_iter()
        .filter(|path| !allowed.iter().any(|folder| path.starts_with(folder)) && path.file_name().unwrap() != "tidy.rs")
        .filter(|path| {
            std::fs::read_to_string(path)
                .unwrap()
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default())
                .any(|code| ["{", "fn", "impl"].iter().any(|next| code.contains(&format!("{word}{next}"))))
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "unsafe outside kernel/ and cri/pause/:\n{}", wrong.join("\n"));
}

#[test]
fn files_stay_short_and_start_by_saying_what_they_are() {
    let mut wrong = Vec::new();
    for path in files(&workspace(), ".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        let inside_tests = path.components().any(|part| part.as_os_str() == "tests");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        if !inside_tests && code.lines().count() > FILE_LINES_MAX {
            wrong.push(format!("{}: {} lines, {FILE_LINES_MAX} at most", path.display(), code.lines().count()));
        }
        if !text.starts_with("//!") && !text.starts_with("#!") {
            wrong.push(format!("{}: starts without a sentence of what it is", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_architecture_page_names_every_crate() {
    let page = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let missing: Vec<&str> = LAYERS
        .iter()
        .flat_map(|(_, crates)| *crates)
        .filter(|name| !page.contains(&format!("`{name}`")))
        .copied()
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name {missing:?}");
}

/// Every file of the workspace that ends so, apart from what is built.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}
