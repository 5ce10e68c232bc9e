//! The table.

use std::fmt::Write;

use crate::floor::Floor;
use crate::{Figures, IDLE, ROUNDS, STANDING};

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
    line(&mut text, "memory per pod, daemon's growth and helpers (PSS)", "KiB", orlop.pod, peer.pod, None);
    let available = [orlop.pod_available, peer.pod_available];
    line(&mut text, "memory per pod, what the machine has less", "KiB", available[0], available[1], None);
    let daemon = format!("the daemon with {STANDING} pods (PSS)");
    line(&mut text, &daemon, "MiB", orlop.daemon / 1024.0, peer.daemon / 1024.0, None);
    let idle = format!("idle CPU with {STANDING} pods, of a core");
    line(&mut text, &idle, "%", orlop.idle, peer.idle, Some(0.0));
    let _ = writeln!(
        text,
        "\n{ROUNDS} pods of one container each in turns, after one that is not counted; bridge, host-local and portmap by \
         exec; idle for {} s.\nFloor: namespaces, veth, cgroups, overlay and two execs by bare system calls.",
        IDLE.as_secs()
    );
    text
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
