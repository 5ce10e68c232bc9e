//! The guest's second disk: our programs, test programs, foreign programs, images, and the script of the steps.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::script;
use crate::packages::as_root;
use crate::workspace::{cache, cargo, path, run, run_tests_as_root, say};

/// Test programs whose tests are all run, and how long each may take there.
const TESTS: [(&str, u64); 14] = [
    ("apparmor", 900),
    ("cgroups", 300),
    ("shim", 600),
    ("shim_devices", 600),
    ("shim_hooks", 600),
    ("shim_life", 900),
    ("shim_security", 900),
    ("shim_streams", 600),
    ("shim_user_namespace", 600),
    ("crictl", 1200),
    ("systemd_units", 300),
    ("systemd", 1200),
    ("checkpoint", 900),
    ("up", 600),
];
/// Those with steps of their own.
const MORE_TESTS: [&str; 3] = ["node", "critest", REBOOT.0];
/// The one that makes the machine reboot, and how long it may take before that and after it.
const REBOOT: (&str, u64) = ("reboot", 300);
/// The crate whose own tests are run, and the program that they become.
const KERNEL: (&str, &str) = ("orlop-kernel", "orlop_kernel");
/// The step that runs them.
const KERNEL_STEP: &str = "kernel";
/// Cases of the node's test: pods of the embedded API whose limits are in cgroups.
const CASES: [&str; 3] = ["limits", "security", "probes"];
/// Foreign programs that are handed in.
const PROGRAMS: [&str; 5] = ["busybox", "crictl", "critest", "kubectl", "runc"];
/// Where the guest mounts the disk.
const PLACE: &str = "/payload";
/// Room on the disk beside what is handed in: what tests write.
const ROOM_MEGABYTES: u64 = 2048;

/// One thing to run.
pub struct Step {
    /// Its name; of its log, too.
    pub name: String,
    /// What the shell runs, in the folder of the payload.
    pub(super) command: String,
    /// How long that may take.
    pub(super) seconds: u64,
    /// It succeeds when the machine is about to reboot, and is run again after that.
    pub(super) reboots: bool,
}

impl Step {
    /// Everything there is to run.
    pub fn all(focus: &str, filter: Option<&str>) -> Vec<Step> {
        let step = |name: &str, command: String, seconds| Step { name: name.into(), command, seconds, reboots: false };
        let filter = filter.map(quote).unwrap_or_default();
        let test = |name: &str, program: &str, seconds| {
            // Those are ignored elsewhere that only this machine has something for.
            step(name, format!("tests/{program} --include-ignored --test-threads 2 {filter}"), seconds)
        };
        let mut steps = vec![step("doctor", "programs/orlop doctor --root /var/tmp/doctor".into(), 120)];
        steps.push(test(KERNEL_STEP, KERNEL.1, 300));
        steps.extend(TESTS.map(|(name, seconds)| test(name, name, seconds)));
        let node = CASES.map(|case| format!("ORLOP_CASE={} tests/node --nocapture embedded", quote(case)));
        steps.push(step("node", node.join(" && "), 1800));
        let critest = format!("tests/critest --keep results/critest --focus {}", quote(focus));
        steps.push(step("critest", critest, 3000));
        let reboot = format!("tests/{} --include-ignored --nocapture", REBOOT.0);
        steps.push(Step { reboots: true, ..step(REBOOT.0, reboot, REBOOT.1) });
        steps
    }
}

/// A word for the shell.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The disk.
pub struct Payload {
    /// Its image.
    pub disk: PathBuf,
}

impl Payload {
    /// Builds the tests and puts everything on the disk.
    pub fn build(folder: &Path, programs: &Path, steps: &[Step]) -> Result<Payload> {
        let (staging, disk) = (folder.join("staging"), folder.join("payload.img"));
        remove(&staging)?;
        remove(&folder.join("results"))?;
        for name in ["tests", "programs", "cache/bin", "images", "results"] {
            let place = staging.join(name);
            std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        }
        say("building the tests for the guest");
        for (name, program) in tests(steps)? {
            copy(&program, &staging.join("tests").join(name))?;
        }
        for entry in std::fs::read_dir(programs).with_context(|| format!("read {}", programs.display()))?.flatten() {
            copy(&entry.path(), &staging.join("programs").join(entry.file_name()))?;
        }
        for name in PROGRAMS {
            copy(&cache()?.join("bin").join(name), &staging.join("cache/bin").join(name))?;
        }
        say("making the images of the tests");
        for (name, storage) in images()? {
            run(as_root("cp").arg("-a").arg(&storage).arg(staging.join("images").join(name)))?;
        }
        let script = staging.join("run");
        std::fs::write(&script, script::write(Path::new(PLACE), steps))
            .with_context(|| format!("write {}", script.display()))?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let _ = std::fs::remove_file(&disk);
        let mut size = Command::new("du");
        let used = size.args(["--summarize", "--block-size=1M"]).arg(&staging).output().context("run du")?;
        let used: u64 = String::from_utf8_lossy(&used.stdout).split_whitespace().next().unwrap_or("0").parse()?;
        let size = format!("{}M", used + used / 8 + ROOM_MEGABYTES);
        run(as_root("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(&staging)
            .arg(&disk)
            .arg(size))?;
        run(as_root("chmod").arg("666").arg(&disk))?;
        remove(&staging)?;
        Ok(Payload { disk })
    }

    /// Takes what the steps left for people off the disk, which the guest has unmounted.
    pub fn fetch_results(&self, folder: &Path) -> Result<()> {
        let command = format!("rdump /results {}", folder.display());
        let output = Command::new("debugfs").args(["-R", &command]).arg(&self.disk).env("PATH", path()).output();
        let output = output.context("run debugfs, of the package e2fsprogs")?;
        if !output.status.success() {
            bail!("debugfs: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::remove_file(&self.disk).with_context(|| format!("remove {}", self.disk.display()))
    }
}

/// The test programs of the steps by the names they get, built with the features of the whole workspace as
/// `cargo xtask test` does.
fn tests(steps: &[Step]) -> Result<Vec<(String, PathBuf)>> {
    let has = |name: &str| steps.iter().any(|step| step.name == name);
    let mut commands = Vec::new();
    let names: Vec<&str> = TESTS.iter().map(|(name, _)| *name).chain(MORE_TESTS).filter(|name| has(name)).collect();
    if !names.is_empty() {
        let mut all = cargo();
        all.args(["test", "--workspace"]).args(names.iter().flat_map(|name| ["--test", name]));
        commands.push(all);
    }
    if has(KERNEL_STEP) {
        let mut kernel = cargo();
        kernel.args(["test", "--package", KERNEL.0, "--lib"]);
        commands.push(kernel);
    }
    let mut found = Vec::new();
    for mut command in commands {
        command.args(["--no-run", "--message-format=json-render-diagnostics"]).stderr(Stdio::inherit());
        let output = command.output().context("run cargo")?;
        if !output.status.success() {
            bail!("the tests can't be built");
        }
        for line in String::from_utf8(output.stdout)?.lines() {
            let message: serde_json::Value = serde_json::from_str(line).context("understand cargo")?;
            if let (Some(program), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str())
                && message["profile"]["test"] == true
            {
                found.push((name.to_string(), PathBuf::from(program)));
            }
        }
    }
    Ok(found)
}

/// The sets of images and the folders of their storage, made by the tests' own code: the guest has no time for that.
fn images() -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--workspace", "--test", "image_storages"]);
    command.env("PATH", path()).env("ORLOP_CACHE", cache()?).stderr(Stdio::inherit());
    run_tests_as_root(&mut command);
    let output = command.output().context("run cargo")?;
    if !output.status.success() {
        bail!("the images can't be made");
    }
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines.lines().filter_map(|line| line.split_once(' ')).map(|(name, place)| (name.into(), place.into())).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

/// Removes a file or folder, of root's perhaps, if it is there.
fn remove(path: &Path) -> Result<()> {
    run(as_root("rm").args(["-rf", "--one-file-system", "--"]).arg(path))
}
