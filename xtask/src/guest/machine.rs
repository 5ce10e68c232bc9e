//! The emulated machine: boots it, follows the steps by what it says, and ends it when it takes too long.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::payload::{Payload, Step};
use super::system::{System, UNIT_NAME};

/// How long it may take until the first step begins.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long it may take to end after the last step.
const END_TIME: Duration = Duration::from_secs(60);
/// Processors and megabytes of memory.
const SIZE: (&str, &str) = ("2", "4096");
/// Lines of the console or of a step that are shown when something went wrong.
const LINES_SHOWN: usize = 40;

/// What is needed to run it.
pub struct Machine<'a> {
    /// Its system.
    pub system: &'a System,
    /// Its second disk.
    pub payload: &'a Payload,
    /// Where its words are kept.
    pub folder: &'a Path,
}

/// How the steps ended.
pub struct Outcome {
    /// Those that did, in their order.
    pub ended: Vec<Ended>,
}

/// How a step ended.
pub struct Ended {
    /// Its name.
    pub name: String,
    /// What its command ended with.
    pub code: i32,
    /// How long it took, by the guest's clock.
    pub seconds: u64,
}

/// The emulator; it ends with us.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots it and follows the steps to their end.
    pub fn run(&self, steps: &[Step], limit: Duration) -> Result<Outcome> {
        let began = Instant::now();
        let (lines, mut emulator) = self.boot()?;
        let mut follower = Follower { folder: self.folder, step: None, said: Vec::new(), ended: Vec::new() };
        let mut deadline = began + BOOT_TIME;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "@done" => break,
                Ok(line) => {
                    if follower.hear(&line, began)? {
                        deadline = began + limit;
                    }
                }
                Err(why) => {
                    let what = match (why, &follower.step) {
                        (RecvTimeoutError::Disconnected, _) => "the guest ended by itself",
                        (RecvTimeoutError::Timeout, None) => "the guest did not begin in time",
                        (RecvTimeoutError::Timeout, Some(_)) => "the steps took longer than --minutes",
                    };
                    bail!("{what}\n{}{}", follower.last_words(), self.console());
                }
            }
        }
        if follower.ended.len() != steps.len() {
            bail!("{} of {} steps ended\n{}", follower.ended.len(), steps.len(), self.console());
        }
        // It unmounts what the results are on.
        if !matches!(lines.recv_timeout(END_TIME), Err(RecvTimeoutError::Disconnected)) {
            bail!("the guest did not end within {} s\n{}", END_TIME.as_secs(), self.console());
        }
        emulator.0.wait().context("wait for the emulator")?;
        Ok(Outcome { ended: follower.ended })
    }

    /// Starts it; what its second serial port says comes line by line.
    fn boot(&self) -> Result<(Receiver<String>, Emulator)> {
        let disk = |file: &Path, snapshot: &str| {
            // A comma in a path would end it.
            let file = file.display().to_string().replace(',', ",,");
            format!("file={file},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}")
        };
        // However we end, it ends with us.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // A reboot keeps what was written, also on the disk of the system: its copy goes with the emulator.
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"]);
        // Page tables of five levels cost an emulator more.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", SIZE.0, "-m", SIZE.1]);
        qemu.arg("-kernel")
            .arg(&self.system.kernel)
            .arg("-initrd")
            .arg(&self.system.initrd)
            .arg("-append")
            .arg(format!("root=/dev/vda rw console=ttyS0 mitigations=off panic=-1 systemd.show_status=error systemd.unit={UNIT_NAME}"));
        qemu.args(["-drive", &disk(&self.system.disk, "on"), "-drive", &disk(&self.payload.disk, "off")]);
        qemu.arg("-serial").arg(format!("file:{}", self.folder.join("console.log").display()));
        qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-chardev", "stdio,id=run,signal=off"]);
        qemu.args(["-device", "virtserialport,chardev=run,name=orlop"]);
        // The port is there as long as its input is open, though nothing comes of it.
        let mut child = qemu
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start qemu-system-x86_64, of the package qemu-system-x86")?;
        let output = BufReader::new(child.stdout.take().context("output of the emulator")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_string();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((lines, Emulator(child)))
    }

    /// The end of what the kernel and systemd said.
    fn console(&self) -> String {
        let text = std::fs::read(self.folder.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("the guest's console:\n{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"))
    }
}

/// Hears what the guest says and tells it on.
struct Follower<'a> {
    folder: &'a Path,
    /// The step that runs, and its log.
    step: Option<(String, std::fs::File)>,
    /// The last lines of it.
    said: Vec<String>,
    ended: Vec<Ended>,
}

impl Follower<'_> {
    /// Takes a line; whether a step has begun with it.
    fn hear(&mut self, line: &str, began: Instant) -> Result<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["@begin", name] => {
                let log = self.folder.join(format!("{name}.log"));
                let file = std::fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
                print!("{:5} s  {name} ", began.elapsed().as_secs());
                let _ = std::io::stdout().flush();
                self.step = Some((name.to_string(), file));
                self.said.clear();
                return Ok(true);
            }
            ["@end", name, code, seconds] if self.step.as_ref().is_some_and(|(step, _)| step == name) => {
                let (code, seconds) = (code.parse()?, seconds.parse()?);
                println!("{} in {seconds} s", if code == 0 { "ok" } else { "FAILED" });
                if code != 0 {
                    print!("{}", self.last_words());
                }
                self.ended.push(Ended { name: name.to_string(), code, seconds });
                self.step = None;
            }
            _ => {
                if let Some((_, log)) = &mut self.step {
                    writeln!(log, "{line}").context("write the log of a step")?;
                }
                if self.said.len() == LINES_SHOWN {
                    self.said.remove(0);
                }
                self.said.push(line.to_string());
            }
        }
        Ok(false)
    }

    fn last_words(&self) -> String {
        let Some((name, _)) = &self.step else { return String::new() };
        format!("the last lines of {name}:\n{}\n", self.said.join("\n"))
    }
}
