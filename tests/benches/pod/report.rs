//! The table.

use std::fmt::Write;

use crate::crowd::{AT_ONCE, BESIDE, IDLE, IN_ALL, SIZES};
use crate::floor::Floor;
use crate::{EXECS, Figures, ROUNDS};

/// The table that the README shows.
pub fn table(orlop: &Figures, peer: &Figures, floor: &Floor) -> String {
    let mut text = String::from("| | orlop | containerd + runc | ratio | floor |\n|---|--:|--:|--:|--:|\n");
    for (name, ours, theirs, floor) in [
        ("pod up", &orlop.up, &peer.up, &floor.up),
        ("pod down", &orlop.down, &peer.down, &floor.down),
        ("exec", &orlop.exec, &peer.exec, &floor.exec),
    ] {
        for (kind, of) in [("median", 0.5), ("minimum", 0.0)] {
            let values = [ours, theirs, floor].map(|list| percentile(list, of));
            line(&mut text, &format!("{name}, {kind}"), "ms", values[0], values[1], Some(values[2]));
        }
    }
    line(&mut text, "CPU per exec", "ms", orlop.exec_cpu, peer.exec_cpu, None);
    let last = SIZES[SIZES.len() - 1];
    for (kind, of) in [("median", 0.5), ("p99", 0.99)] {
        let values = [&orlop.up_in_crowd, &peer.up_in_crowd].map(|list| percentile(list, of));
        line(&mut text, &format!("pod up with {last} pods running, {kind}"), "ms", values[0], values[1], None);
    }
    let name = format!("pods up per second, {AT_ONCE} at a time");
    let ratio = format!("{:.1}x", orlop.rate / peer.rate);
    let _ = writeln!(text, "| {name} | {} | {} | {ratio} | - |", short(orlop.rate), short(peer.rate));
    crowds(&mut text, orlop, peer);
    let _ = writeln!(
        text,
        "\n{ROUNDS} pods of one container each in turns, after one that is not counted; bridge, host-local and portmap by \
         exec. CPU of an exec over {EXECS} in a row; {BESIDE} pods one after the other beside {last}; {IN_ALL} pods \
         {AT_ONCE} at a time; idle for {} s.\nFloor: namespaces, veth, cgroups, overlay and two execs by bare system calls.",
        IDLE.as_secs()
    );
    text
}

/// Lines of what was measured with pods standing.
fn crowds(text: &mut String, orlop: &Figures, peer: &Figures) {
    for (size, (ours, theirs)) in SIZES.iter().zip(orlop.crowds.iter().zip(&peer.crowds)) {
        let name = format!("memory per pod of {size}, daemon's growth and helpers (PSS)");
        line(text, &name, "KiB", ours.pod, theirs.pod, None);
        let name = format!("memory per pod of {size}, what the machine has less");
        line(text, &name, "KiB", ours.pod_available, theirs.pod_available, None);
        let name = format!("daemon and helpers with {size} pods (PSS)");
        line(text, &name, "MiB", ours.all / 1024.0, theirs.all / 1024.0, None);
        let name = format!("idle CPU with {size} pods, of a core");
        line(text, &name, "%", ours.idle, theirs.idle, Some(0.0));
    }
}

fn line(text: &mut String, name: &str, unit: &str, ours: f64, theirs: f64, floor: Option<f64>) {
    let ratio = if ours > 0.0 { format!("{:.1}x", theirs / ours) } else { "-".into() };
    let floor = floor.map_or_else(|| "-".into(), |floor| format!("{} {unit}", short(floor)));
    let _ = writeln!(text, "| {name} | {} {unit} | {} {unit} | {ratio} | {floor} |", short(ours), short(theirs));
}

/// Three digits, more or less.
fn short(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn percentile(values: &[f64], of: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * of) as usize]
}
