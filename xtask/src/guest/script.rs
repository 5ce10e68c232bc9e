//! What the guest runs: each step with its deadline, between two lines that tell of it, over a reboot where a step makes one.

use std::path::Path;

use super::payload::{Step, quote};

/// How long the machine may take to go down after the step that made it do so.
const DOWN_SECONDS: u64 = 180;

/// The script for the steps, which finds everything in `place`.
///
/// It is run at every boot. A step that reboots is noted in `place` with the time of its beginning; the next boot begins with
/// its second run. A boot that no step made ends the script with an error.
pub fn write(place: &Path, steps: &[Step]) -> String {
    let place = place.display();
    let mut script = format!(
        "#!/bin/sh\ncd {place}\n\
         export HOME=/root ORLOP_PROGRAMS={place}/programs ORLOP_CACHE={place}/cache ORLOP_IMAGES={place}/images\n\
         export RUST_BACKTRACE=0\nresumed=\n\
         if [ -e rebooting ]; then\n  read -r resumed began < rebooting\n  rm rebooting\n\
         elif [ -e booted ]; then\n  echo 'the machine has rebooted, and no step is to blame'\n  exit 1\nfi\n: > booted\n"
    );
    for step in steps {
        script.push_str(&write_step(step));
    }
    script.push_str("echo '@done'\n");
    script
}

fn write_step(Step { name, command, seconds, reboots }: &Step) -> String {
    let run = format!("timeout --kill-after=20 {seconds} sh -c {} < /dev/null\ncode=$?\n", quote(command));
    let begin = format!("echo '@begin {name}'\nbegan=$(date +%s)\n");
    let end = format!("echo\necho \"@end {name} $code $(($(date +%s) - began))\"\n");
    if !reboots {
        return format!("if [ -z \"$resumed\" ]; then\n{begin}{run}{end}fi\n");
    }
    // The signal that ends everything may reach the waiting before the script: only a whole wait means that it stayed up.
    format!(
        "if [ -z \"$resumed\" ]; then\n{begin}echo \"{name} $began\" > rebooting\nsync\n{run}\
         if [ $code = 0 ]; then\n  sleep {DOWN_SECONDS} || exit 1\n\
         \x20 echo 'the machine has not gone down within {DOWN_SECONDS} s'\n  code=1\nfi\n\
         rm rebooting\n{end}\
         elif [ \"$resumed\" = '{name}' ]; then\nresumed=\n{run}{end}fi\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn step(name: &str, command: &str, reboots: bool) -> Step {
        Step { name: name.into(), command: command.into(), seconds: 20, reboots }
    }

    /// What a boot says: its lines without empty ones, the times of its steps left out.
    fn boot(place: &Path, steps: &[Step]) -> Vec<String> {
        std::fs::write(place.join("run"), write(place, steps)).unwrap();
        // The shell that runs the script is the one that a step ends as the machine would.
        let output = Command::new("sh").args(["-c", "echo $$ > pid; exec sh run"]).current_dir(place).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let untimed = |line: &str| match line.starts_with("@end ") {
            true => line.rsplit_once(' ').unwrap().0.to_string(),
            false => line.to_string(),
        };
        text.lines().filter(|line| !line.is_empty()).map(untimed).collect()
    }

    #[test]
    fn steps_go_on_behind_a_reboot() {
        let folder = tempfile::tempdir().unwrap();
        let reboot = "if [ -e went ]; then echo back; exit 4; fi; : > went; echo going; kill -KILL $(cat pid)";
        let steps =
            [step("one", "echo \"it's\"; exit 3", false), step("two", reboot, true), step("three", "true", false)];
        assert_eq!(boot(folder.path(), &steps), ["@begin one", "it's", "@end one 3", "@begin two", "going"]);
        assert_eq!(boot(folder.path(), &steps), ["back", "@end two 4", "@begin three", "@end three 0", "@done"]);
        assert_eq!(boot(folder.path(), &steps), ["the machine has rebooted, and no step is to blame"]);
    }

    #[test]
    fn a_step_that_fails_before_its_reboot_ends_there() {
        let folder = tempfile::tempdir().unwrap();
        let steps = [step("two", "exit 5", true), step("three", "true", false)];
        let want = ["@begin two", "@end two 5", "@begin three", "@end three 0", "@done"];
        assert_eq!(boot(folder.path(), &steps), want);
    }
}
