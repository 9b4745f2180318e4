//! Progress on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::clean;
use crate::progress::Progress;

/// One line on standard error that shows what is going on; hidden when that is no terminal.
#[derive(Clone, Debug)]
pub struct Bars {
    bar: ProgressBar,
    shown: bool,
}

impl Bars {
    /// Shown or not.
    pub fn new(shown: bool) -> Self {
        // Drawn from the first phase on: a command that ends at once shows nothing.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, shown }
    }
    /// Takes the line away while something else is written.
    pub fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bar.suspend(write)
    }
    /// The end: the line goes away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bars {
    fn phase(&self, name: &str, total_bytes: Option<u64>) {
        tracing::info!(bytes = total_bytes, "{}", clean(name));
        if !self.shown {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            self.bar.enable_steady_tick(Duration::from_millis(250));
        }
        let template = match total_bytes {
            Some(_) => {
                "{spinner} {wide_msg} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
            }
            None => "{spinner} {wide_msg} {binary_bytes} {binary_bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        match total_bytes {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_message(clean(name).into_owned());
        self.bar.set_position(0);
        self.bar.reset_eta();
    }
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}
