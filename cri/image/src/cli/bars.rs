//! Progress bars of a pull: one per layer, on stderr, silent where that is no terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::progress::{LayerStage, PullProgress};

/// The bars of one pull.
pub(super) struct PullBars {
    all: MultiProgress,
    layers: Vec<ProgressBar>,
}

impl PullBars {
    pub(super) fn new() -> Self {
        Self { all: MultiProgress::new(), layers: Vec::new() }
    }

    pub(super) fn show(&mut self, progress: &PullProgress) {
        if self.layers.is_empty() {
            let template = "{prefix}  {bar:30} {bytes:>10}/{total_bytes:10} {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            for layer in &progress.layers {
                let bar = self.all.add(ProgressBar::new(layer.total_bytes).with_style(style.clone()));
                bar.set_prefix(layer.digest.hex()[..12].to_owned());
                self.layers.push(bar);
            }
        }
        for (bar, layer) in self.layers.iter().zip(&progress.layers) {
            bar.set_position(layer.done_bytes);
            match layer.stage {
                LayerStage::Waiting => bar.set_message("waiting"),
                LayerStage::Fetching if layer.done_bytes == layer.total_bytes => bar.set_message("unpacking"),
                LayerStage::Fetching => bar.set_message("pulling"),
                LayerStage::Done if !bar.is_finished() => bar.finish_with_message("done"),
                LayerStage::Done => {}
            }
        }
    }
}
