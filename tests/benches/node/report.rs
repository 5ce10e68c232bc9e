//! The table.

use std::fmt::Write;

use crate::{Figures, ROUNDS};

/// The table that the README shows.
pub fn table(orlop: &Figures, peer: &Figures) -> String {
    let mut text = String::from("| | orlop node | kubelet + containerd + runc | ratio |\n|---|--:|--:|--:|\n");
    for (name, ours, theirs) in [
        ("bound, until ready, with a token", &orlop.up, &peer.up),
        ("bound, until ready, without a token", &orlop.up_plain, &peer.up_plain),
        ("killed, until failed (Never)", &orlop.failed, &peer.failed),
        ("killed, until not ready (Always)", &orlop.not_ready, &peer.not_ready),
        ("killed, until ready again (Always)", &orlop.again, &peer.again),
        ("deleted, until gone", &orlop.gone, &peer.gone),
    ] {
        if ours.is_empty() {
            continue;
        }
        line(&mut text, &format!("{name}, median"), middle(ours), middle(theirs));
        line(&mut text, &format!("{name}, minimum"), least(ours), least(theirs));
    }
    if peer.exec_probe > 0.0 {
        line(&mut text, "CPU per exec probe", orlop.exec_probe, peer.exec_probe);
        line(&mut text, "CPU per HTTP probe", orlop.http_probe, peer.http_probe);
    }
    let _ = writeln!(
        text,
        "\n{ROUNDS} pods of each kind after one that is not counted, seen by a watch of kube-apiserver; the image is there, \
         no scheduler is asked. Probes: 20 pods, each second, beside the same pods without probes."
    );
    text
}

fn line(text: &mut String, name: &str, ours: f64, theirs: f64) {
    let ratio = if ours > 0.0 { format!("{:.1}x", theirs / ours) } else { "-".into() };
    let _ = writeln!(text, "| {name} | {} ms | {} ms | {ratio} |", short(ours), short(theirs));
}

/// Three digits, more or less.
fn short(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
